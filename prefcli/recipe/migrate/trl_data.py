"""trl's data: one dataset by name, or a list; and alignment-handbook's mixtures."""

from __future__ import annotations

import re
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on, refuse_unknown, word_list
from prefcli.recipe.migrate.sources import SourceList, evaluates, put_held_out, put_sources

KEYS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "dataset_text_field",
    "datasets",
    "test_split_size",
)


def translate(draft: Draft) -> None:
    """Translate dataset_name with its splits, or the list `datasets`."""
    if isinstance(entries := draft.given("datasets"), list):
        _put_list(draft, entries)
        return
    if (name := draft.given("dataset_name")) is None:
        return
    source = {"path": name}
    if draft.given("dataset_config") is not None:
        source["name"] = draft.given("dataset_config")
    text = draft.given("dataset_text_field")
    columns = {} if text in (None, "text") else {"columns": {"text": text}}
    train = {**source, "split": draft.given("dataset_train_split") or "train", **columns}
    put_sources(draft, "data.train", [(train, ())], "dataset_name")
    if evaluates(draft):
        test = {**source, "split": draft.given("dataset_test_split") or "test", **columns}
        put_sources(draft, "data.eval", [(test, ())], "dataset_name")
    else:
        draft.drop("dataset_test_split", "evaluation is off")
    draft.handled |= {"dataset_config", "dataset_train_split", "dataset_test_split"}
    draft.handled |= {"dataset_text_field"}


def _put_list(draft: Draft, entries: list[Any]) -> None:
    sources: SourceList = []
    for i, entry in enumerate(entries):
        source = dict(entry) if isinstance(entry, dict) else {"path": entry}
        _check_columns(draft, source.pop("columns", None), "datasets", i, "columns")
        if source.pop("data_dir", None) is not None:
            draft.refuse(
                "datasets",
                "prefcli does not have data_dir",
                i,
                "data_dir",
                code="RCP156",
                hint="list the files under data_files",
            )
        sources.append(({key: value for key, value in source.items() if value is not None}, (i,)))
    put_sources(draft, "data.train", sources, "datasets")
    if draft.given("test_split_size") is not None:
        put_held_out(draft, draft.given("test_split_size"), "test_split_size")


def _check_columns(draft: Draft, columns: Any, key: str, *inside: str | int) -> None:
    """Check a list of columns, which needs no translation: prefcli reads those of the method."""
    if word_list(columns or []) is None:
        draft.refuse(key, "is not a list of columns", *inside, code="RCP157")


def dataset_kwargs(draft: Draft) -> None:
    """Translate trl's dataset_kwargs, which may only turn off special tokens."""
    given = draft.given("dataset_kwargs")
    for name, value in (given if isinstance(given, dict) else {}).items():
        if name in ("add_special_tokens", "append_concat_token") and value is False:
            reason = "prefcli does not add special tokens to rendered chats"
            draft.drop("dataset_kwargs", reason, name)
        else:
            draft.refuse(
                "dataset_kwargs",
                "prefcli has no such setting",
                name,
                code="RCP156",
                hint="remove it if the run does not need it",
            )


MIXTURE_KEYS = ("dataset_mixture", "dataset_mixer", "dataset_splits", "dataset_configs")
_SOURCE_KEYS = {"id": "path", "config": "name", "split": "split", "weight": "fraction"}


def translate_mixture(draft: Draft) -> None:
    """Translate the handbook's dataset_mixture, its older dataset_mixer, or trl's keys."""
    if isinstance(mixture := draft.given("dataset_mixture"), dict):
        _put_mixture(draft, mixture)
    elif isinstance(mixer := draft.given("dataset_mixer"), dict):
        _put_mixer(draft, mixer)
    else:
        translate(draft)


def _put_mixture(draft: Draft, mixture: dict[str, Any]) -> None:
    entries = mixture.get("datasets")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        message = "must have a list `datasets` of sections with an id"
        draft.refuse("dataset_mixture", message, code="RCP157")
        return
    sources: SourceList = [
        (_source(draft, entry, i), ("datasets", i)) for i, entry in enumerate(entries)
    ]
    for key in mixture.keys() - {"datasets", "seed", "test_split_size"}:
        refuse_unknown(draft, "dataset_mixture", key)
    if "seed" in mixture:
        draft.drop("dataset_mixture", "prefcli has one seed for everything", "seed")
    splits_again = is_on(mixture.get("test_split_size"))
    test = [source for source in sources if splits_again and _is_test(source[0])]
    train = [source for source in sources if source not in test]
    put_sources(draft, "data.train", train, "dataset_mixture")
    if not splits_again:
        return
    train_paths = {source["path"] for source, _ in train}
    for source, inside in test:
        if source["path"] not in train_paths:
            draft.refuse(
                "dataset_mixture",
                f"only the test split of {source['path']} is in the mixture, and prefcli does not "
                "train on test splits",
                *inside,
                code="RCP164",
                hint="add its train split, or remove this one",
            )
    if not test:
        put_held_out(draft, mixture["test_split_size"], "dataset_mixture", "test_split_size")
        return
    reason = "data.eval has the official test splits"
    draft.drop("dataset_mixture", reason, "test_split_size")
    if evaluates(draft):
        put_sources(draft, "data.eval", test, "dataset_mixture")
    use = "are data.eval" if "data.eval" in draft.values else "are not used"
    draft.note(
        "the handbook also trains on the official test splits and evaluates on a random part of "
        f"all rows; here the test splits {use} and only the train splits are trained on, so the "
        "results are not comparable"
    )


def _source(draft: Draft, entry: dict[str, Any], i: int) -> dict[str, Any]:
    _check_columns(draft, entry.get("columns"), "dataset_mixture", "datasets", i, "columns")
    for key in entry.keys() - _SOURCE_KEYS.keys() - {"columns"}:
        refuse_unknown(draft, "dataset_mixture", "datasets", i, key)
    if not isinstance(entry.get("id"), str):
        message = "the dataset has no id"
        draft.refuse("dataset_mixture", message, "datasets", i, code="RCP157")
        entry = {**entry, "id": ""}
    given = {key: value for key, value in entry.items() if key in _SOURCE_KEYS}
    return {_SOURCE_KEYS[key]: value for key, value in given.items() if value is not None}


def _is_test(source: dict[str, Any]) -> bool:
    parts = set(re.split(r"[^a-z]+", str(source.get("split", "train")).lower()))
    return bool(parts & {"test", "validation", "valid", "val", "eval"})


def _put_mixer(draft: Draft, mixer: dict[str, Any]) -> None:
    """Translate the handbook's older form, whose test splits are only evaluated."""
    draft.handled |= {"dataset_splits", "dataset_configs"}
    splits = word_list(draft.given("dataset_splits") or ["train", "test"])
    configs = word_list(draft.given("dataset_configs") or [""] * len(mixer))
    if splits is None or configs is None or len(configs) != len(mixer):
        draft.refuse(
            "dataset_mixer",
            "dataset_splits and dataset_configs must be lists, with one config per dataset",
            code="RCP157",
        )
        return
    train: SourceList = []
    test: SourceList = []
    for (path, fraction), config in zip(mixer.items(), configs, strict=True):
        for split in splits:
            source = {"path": path, **({"name": config} if config else {}), "split": split}
            if _is_test(source):
                test.append((source, (path,)))
            else:
                # Forks of the handbook take a number above 1 as a number of rows.
                is_count = isinstance(fraction, int) and fraction > 1
                train.append((source | {"rows" if is_count else "fraction": fraction}, (path,)))
    put_sources(draft, "data.train", train, "dataset_mixer")
    if evaluates(draft):
        put_sources(draft, "data.eval", test, "dataset_mixer")
    # These scripts used packing=True and add_system_message, whatever the file says.
    if draft.method == "sft" and draft.given("packing") is None:
        draft.put("sft.packing", True, "dataset_mixer")
        draft.note("sft.packing is true: the handbook's scripts for dataset_mixer always packed")
    draft.note(
        "the handbook's scripts for dataset_mixer start each conversation with an empty system "
        "message if the template reads one, and prefcli does not; and they give tokenizers "
        "without a template Zephyr's: write it as model.chat_template"
    )
