"""trl's data: one dataset by name, or a list; and alignment-handbook's mixtures."""

from __future__ import annotations

import re
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on, word_list
from prefcli.recipe.migrate.sources import (
    SourceList,
    evaluates,
    put_held_out,
    put_sources,
    read_section,
    sections,
)

RULES = RuleBook()
MIXTURE_RULES = RuleBook()
_KEYS = (
    "dataset_name dataset_config dataset_train_split dataset_test_split dataset_text_field "
    "datasets test_split_size"
)
_MIXTURE_KEYS = "dataset_mixture dataset_mixer dataset_splits dataset_configs"


@RULES.together(_KEYS)
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
    draft.handled |= {*_KEYS.split()} - {"datasets", "test_split_size"}


def _put_list(draft: Draft, entries: list[Any]) -> None:
    sources: SourceList = []
    for i, entry in enumerate(entries):
        section = dict(entry) if isinstance(entry, dict) else {"path": entry}
        _check_columns(draft, section.pop("columns", None), "datasets", i, "columns")
        source = read_section(draft, section, "path name split data_files", "", "datasets", i)
        sources.append((source, (i,)))
    put_sources(draft, "data.train", sources, "datasets")
    if draft.given("test_split_size") is not None:
        put_held_out(draft, draft.given("test_split_size"), "test_split_size")


def _check_columns(draft: Draft, columns: Any, key: str, *inside: str | int) -> None:
    """Check a list of columns, which needs no translation: prefcli reads those of the method."""
    if word_list(columns or []) is None:
        draft.refuse(key, "is not a list of columns", *inside, code="RCP157")


@RULES.together("dataset_kwargs")
def dataset_kwargs(draft: Draft) -> None:
    """Translate trl's dataset_kwargs, which may only turn off special tokens."""
    given = draft.given("dataset_kwargs")
    if isinstance(given, dict):
        switches = ("add_special_tokens", "append_concat_token", "skip_prepare_dataset")
        harmless = dict.fromkeys(switches, (False,))
        read_section(draft, given, "", "", "dataset_kwargs", harmless=harmless)
        draft.drop("dataset_kwargs", "prefcli does not add special tokens to rendered chats")


@MIXTURE_RULES.together(f"{_MIXTURE_KEYS} {_KEYS}")
def translate_mixture(draft: Draft) -> None:
    """Translate the handbook's dataset_mixture, its older dataset_mixer, or trl's keys."""
    if isinstance(mixture := draft.given("dataset_mixture"), dict):
        _put_mixture(draft, mixture)
    elif isinstance(mixer := draft.given("dataset_mixer"), dict):
        _put_mixer(draft, mixer)
    else:
        translate(draft)


def _put_mixture(draft: Draft, mixture: dict[str, Any]) -> None:
    key = "dataset_mixture"
    sources: SourceList = []
    for i, entry in enumerate(sections(draft, mixture.get("datasets"), key, "datasets")):
        inside = ("datasets", i)
        _check_columns(draft, entry.get("columns"), key, *inside, "columns")
        if not isinstance(entry.get("id"), str):
            draft.refuse(key, "the dataset has no id", *inside, code="RCP157")
            entry["id"] = ""
        names = "id=path config=name split weight=fraction"
        sources.append((read_section(draft, entry, names, "columns", key, *inside), inside))
    read_section(draft, mixture, "", "datasets seed test_split_size", key)
    if "seed" in mixture:
        draft.drop(key, "prefcli has one seed for everything", "seed")
    splits_again = is_on(mixture.get("test_split_size"))
    test = [source for source in sources if splits_again and _is_test(source[0])]
    train = [source for source in sources if source not in test]
    put_sources(draft, "data.train", train, key)
    train_paths = {source["path"] for source, _ in train}
    for source, place in test:
        if source["path"] not in train_paths:
            draft.refuse(
                key,
                f"only the test split of {source['path']} is in the mixture, and prefcli does not "
                "train on test splits",
                *place,
                code="RCP164",
                hint="add its train split, or remove this one",
            )
    if test:
        _put_official_tests(draft, test)
    elif splits_again:
        put_held_out(draft, mixture["test_split_size"], key, "test_split_size")


def _put_official_tests(draft: Draft, test: SourceList) -> None:
    """Write data.eval for the official test splits in a mixture."""
    draft.drop("dataset_mixture", "data.eval has the official test splits", "test_split_size")
    if evaluates(draft):
        put_sources(draft, "data.eval", test, "dataset_mixture")
    use = "are data.eval" if "data.eval" in draft.values else "are not used"
    draft.note(
        "the handbook also trains on the official test splits and evaluates on a random part of "
        f"all rows; here the test splits {use} and only the train splits are trained on, so the "
        "results are not comparable"
    )


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
