"""alignment-handbook: trl's arguments, with a mixture of datasets and a chat template."""

from __future__ import annotations

import re
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import MultiKeyRule, Rename, is_on, word_list
from prefcli.recipe.migrate.shared_rules import (
    SourceList,
    drop_random_split,
    evaluates,
    put_sources,
)
from prefcli.recipe.migrate.source_tool import SourceTool
from prefcli.recipe.migrate.training_arguments import STRATEGY_KEYS
from prefcli.recipe.migrate.trl import TRL
from prefcli.recipe.migrate.trl_data import DATA_KEYS, check_columns
from prefcli.recipe.migrate.trl_data import translate_data as translate_trl_data

_SOURCE_KEYS = {"id": "path", "config": "name", "split": "split", "weight": "fraction"}


def _translate_data(draft: Draft) -> None:
    if isinstance(mixture := draft.given("dataset_mixture"), dict):
        _put_mixture(draft, mixture)
    elif isinstance(mixer := draft.given("dataset_mixer"), dict):
        _put_mixer(draft, mixer)
    else:
        translate_trl_data(draft)


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
        _refuse_unknown_key(draft, key)
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
        drop_random_split(draft, "dataset_mixture", "test_split_size")
        return
    reason = "data.eval has the official test splits"
    draft.drop("dataset_mixture", reason, "test_split_size")
    if evaluates(draft, *STRATEGY_KEYS):
        put_sources(draft, "data.eval", test, "dataset_mixture")
    use = "are data.eval" if "data.eval" in draft.values else "are not used"
    draft.note(
        "the handbook also trains on the official test splits and evaluates on a random part of "
        f"all rows; here the test splits {use} and only the train splits are trained on, so the "
        "results are not comparable"
    )


def _refuse_unknown_key(draft: Draft, key: str, *section: str | int) -> None:
    draft.refuse(
        "dataset_mixture",
        "prefcli migrate does not know this key",
        *section,
        key,
        code="RCP155",
        hint="remove it, or report it as missing",
    )


def _source(draft: Draft, entry: dict[str, Any], i: int) -> dict[str, Any]:
    check_columns(draft, entry.get("columns"), "dataset_mixture", "datasets", i, "columns")
    for key in entry.keys() - _SOURCE_KEYS.keys() - {"columns"}:
        _refuse_unknown_key(draft, key, "datasets", i)
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
                train.append((source | {"fraction": fraction}, (path,)))
    put_sources(draft, "data.train", train, "dataset_mixer")
    if evaluates(draft, *STRATEGY_KEYS):
        put_sources(draft, "data.eval", test, "dataset_mixer")


_TABLE = {
    **TRL.table,
    "chat_template": Rename("model.chat_template"),
    **dict.fromkeys(
        (
            "dataset_mixture",
            "dataset_mixer",
            "dataset_splits",
            "dataset_configs",
            *DATA_KEYS,
        ),
        MultiKeyRule(_translate_data, "data.train", "data.eval"),
    ),
}

HANDBOOK = SourceTool(
    "alignment-handbook",
    frozenset({"dataset_mixture", "dataset_mixer", "chat_template"}),
    _TABLE,
    TRL.defaults,
    TRL.candidate_methods,
)
