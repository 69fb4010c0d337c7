"""alignment-handbook: trl's arguments, with a mixture of datasets and a template of its own."""

from __future__ import annotations

import re
from typing import Any

from prefcli.recipe.migrate.base import Draft, MultiKeyRule, To, is_on, words
from prefcli.recipe.migrate.shared_rules import Listed, evaluates, put_sources
from prefcli.recipe.migrate.source_tool import Tool
from prefcli.recipe.migrate.training_arguments import STRATEGIES
from prefcli.recipe.migrate.trl import TRL
from prefcli.recipe.migrate.trl_data import check_columns, data_by_name, no_random_split

_KEYS = {"id": "path", "config": "name", "split": "split", "weight": "fraction"}


def _data(draft: Draft) -> None:
    if isinstance(mixture := draft.given("dataset_mixture"), dict):
        _mixture(draft, mixture)
    elif isinstance(mixer := draft.given("dataset_mixer"), dict):
        _mixer(draft, mixer)
    else:
        data_by_name(draft)


def _mixture(draft: Draft, mixture: dict[str, Any]) -> None:
    listed = mixture.get("datasets")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        draft.refuse("dataset_mixture", "has no list `datasets` of sections with an id")
        return
    sources: Listed = [
        (_source(draft, entry, i), ("datasets", i)) for i, entry in enumerate(listed)
    ]
    for key in mixture.keys() - {"datasets", "seed", "test_split_size"}:
        draft.refuse("dataset_mixture", "prefcli migrate does not know this key", None, key)
    if "seed" in mixture:
        draft.drop("dataset_mixture", "one seed draws everything", "seed")
    split_again = is_on(mixture.get("test_split_size"))
    test = [source for source in sources if split_again and _is_test(source[0])]
    train = [source for source in sources if source not in test]
    put_sources(draft, "data.train", train, "dataset_mixture")
    if not split_again:
        return
    trained = {source["path"] for source, _ in train}
    for source, inside in test:
        if source["path"] not in trained:
            draft.refuse(
                "dataset_mixture",
                f"{source['path']} is in the mixture by its test split alone, which prefcli would "
                "not train on",
                "add its train split to the file, or take this one out",
                *inside,
            )
    if not test:
        no_random_split(draft, "dataset_mixture", "test_split_size")
        return
    draft.drop("dataset_mixture", "data.eval holds the official test splits", "test_split_size")
    if evaluates(draft, *STRATEGIES):
        put_sources(draft, "data.eval", test, "dataset_mixture")
    draft.remark(
        "the handbook trains on the official test splits too and evaluates on a random part of "
        "all rows; here "
        + ("they are data.eval" if "data.eval" in draft.values else "they are left out")
        + " and train splits alone are trained on, so figures are not comparable"
    )


def _source(draft: Draft, entry: dict[str, Any], i: int) -> dict[str, Any]:
    check_columns(draft, entry.get("columns"), "dataset_mixture", "datasets", i, "columns")
    for key in entry.keys() - _KEYS.keys() - {"columns"}:
        draft.refuse(
            "dataset_mixture", "prefcli migrate does not know this key", None, "datasets", i, key
        )
    if not isinstance(entry.get("id"), str):
        draft.refuse("dataset_mixture", "the dataset has no id", None, "datasets", i)
        entry = {**entry, "id": ""}
    given = {key: value for key, value in entry.items() if key in _KEYS and value is not None}
    return {_KEYS[key]: value for key, value in given.items()}


def _is_test(source: dict[str, Any]) -> bool:
    words = set(re.split(r"[^a-z]+", str(source.get("split", "train")).lower()))
    return bool(words & {"test", "validation", "valid", "val", "eval"})


def _mixer(draft: Draft, mixer: dict[str, Any]) -> None:
    """The handbook's older form: test splits were for evaluation, whole."""
    draft.settled |= {"dataset_splits", "dataset_configs"}
    splits = words(draft.given("dataset_splits") or ["train", "test"])
    configs = words(draft.given("dataset_configs") or [""] * len(mixer))
    if splits is None or configs is None or len(configs) != len(mixer):
        draft.refuse("dataset_mixer", "dataset_splits or dataset_configs is no list that fits it")
        return
    train: Listed = []
    test: Listed = []
    for (path, fraction), config in zip(mixer.items(), configs, strict=True):
        for split in splits:
            source = {"path": path, **({"name": config} if config else {}), "split": split}
            if _is_test(source):
                test.append((source, (path,)))
            else:
                train.append((source | {"fraction": fraction}, (path,)))
    put_sources(draft, "data.train", train, "dataset_mixer")
    if evaluates(draft, *STRATEGIES):
        put_sources(draft, "data.eval", test, "dataset_mixer")


_TABLE = {
    **TRL.table,
    "chat_template": To("model.chat_template"),
    **dict.fromkeys(
        (
            "dataset_mixture",
            "dataset_mixer",
            "dataset_splits",
            "dataset_configs",
            "dataset_name",
            "dataset_config",
            "dataset_train_split",
            "dataset_test_split",
            "dataset_text_field",
            "datasets",
            "test_split_size",
        ),
        MultiKeyRule(_data, "data.train", "data.eval"),
    ),
}

HANDBOOK = Tool(
    "alignment-handbook",
    frozenset({"dataset_mixture", "dataset_mixer", "chat_template"}),
    _TABLE,
    TRL.defaults,
    TRL.trains,
)
