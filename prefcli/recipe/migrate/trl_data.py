"""trl's data: one dataset by name, or a list of them."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.base import Draft, words
from prefcli.recipe.migrate.shared_rules import Listed, evaluates, put_sources
from prefcli.recipe.migrate.training_arguments import STRATEGIES


def data_by_name(draft: Draft) -> None:
    """One dataset of the hub: dataset_name, or trl's list `datasets`."""
    if isinstance(listed := draft.given("datasets"), list):
        _listed(draft, listed)
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
    if evaluates(draft, *STRATEGIES):
        test = {**source, "split": draft.given("dataset_test_split") or "test", **columns}
        put_sources(draft, "data.eval", [(test, ())], "dataset_name")
    else:
        draft.drop("dataset_test_split", "evaluation is off")
    draft.settled |= {"dataset_config", "dataset_train_split", "dataset_test_split"}
    draft.settled |= {"dataset_text_field"}


def _listed(draft: Draft, listed: list[Any]) -> None:
    sources: Listed = []
    for i, entry in enumerate(listed):
        source = dict(entry) if isinstance(entry, dict) else {"path": entry}
        check_columns(draft, source.pop("columns", None), "datasets", i, "columns")
        if source.pop("data_dir", None) is not None:
            draft.refuse("datasets", "prefcli has no data_dir", "name the files", i, "data_dir")
        written = {key: value for key, value in source.items() if value is not None}
        sources.append((written, (i,)))
    put_sources(draft, "data.train", sources, "datasets")
    if draft.given("test_split_size") is not None:
        no_random_split(draft, "test_split_size")


def no_random_split(draft: Draft, key: str, *inside: str | int) -> None:
    draft.drop(key, "prefcli takes no evaluation rows out of the training data", *inside)
    draft.remark(
        f"no evaluation: {draft.tool} took it at random from the training rows, all of which are "
        "trained on here; name held-out data as data.eval"
    )


_TEMPLATE_INPUT = {"chat_template_kwargs", "tools"}


def check_columns(draft: Draft, columns: Any, key: str, *inside: str | int) -> None:
    """A list of columns to keep: nothing to translate, for prefcli reads those of the method."""
    names = words(columns or [])
    if names is None:
        draft.refuse(key, "is no list of columns", None, *inside)
    for name in names or []:
        message = f"prefcli does not read the column {name!r}, which trl gives to the chat template"
        if name in _TEMPLATE_INPUT and not any(p.message == message for p in draft.problems):
            draft.refuse(key, message, "render such rows first, or leave them out", *inside)


def dataset_kwargs(draft: Draft) -> None:
    given = draft.given("dataset_kwargs")
    for name, value in (given if isinstance(given, dict) else {}).items():
        if name in ("add_special_tokens", "append_concat_token") and value is False:
            reason = "prefcli adds no special tokens to what a chat template rendered"
            draft.drop("dataset_kwargs", reason, name)
        else:
            draft.refuse("dataset_kwargs", "prefcli has no such setting", None, name)
