"""trl's data: one dataset by name, or a list of datasets."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import word_list
from prefcli.recipe.migrate.shared_rules import (
    SourceList,
    drop_random_split,
    evaluates,
    put_sources,
)
from prefcli.recipe.migrate.training_arguments import STRATEGY_KEYS

DATA_KEYS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "dataset_text_field",
    "datasets",
    "test_split_size",
)


def translate_data(draft: Draft) -> None:
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
    if evaluates(draft, *STRATEGY_KEYS):
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
        check_columns(draft, source.pop("columns", None), "datasets", i, "columns")
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
        drop_random_split(draft, "test_split_size")


_TEMPLATE_COLUMNS = {"chat_template_kwargs", "tools"}
"""Columns that trl passes to the chat template."""


def check_columns(draft: Draft, columns: Any, key: str, *inside: str | int) -> None:
    """Check a list of columns, which needs no translation: prefcli reads those of the method."""
    names = word_list(columns or [])
    if names is None:
        draft.refuse(key, "is not a list of columns", *inside, code="RCP157")
    for name in names or []:
        message = f"prefcli ignores the column {name!r}, which trl passes to the chat template"
        if name in _TEMPLATE_COLUMNS and not any(p.message == message for p in draft.problems):
            hint = "render these rows first, or remove the column"
            draft.refuse(key, message, *inside, code="RCP164", hint=hint)


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
