"""data.train and data.eval, as the readers of the tools' data write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on, refuse_unknown

_NONE: Mapping[str, Collection[Any]] = {}
NOT_NEEDED = "data.train and data.eval do not need it"
SourceList = list[tuple[dict[str, Any], tuple[str | int, ...]]]
"""Data sources, each with its place inside the key that it came from."""


def evaluates(draft: Draft) -> bool:
    """Return whether the file has an evaluation strategy other than `no`."""
    return is_on(draft.value("eval_strategy"))


def sections(draft: Draft, value: Any, key: str, *inside: str | int) -> list[dict[str, Any]]:
    """Return a list of sections; refuse anything else, and return an empty list."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return value
    draft.refuse(key, "is not a list of sections", *inside, code="RCP157")
    return []


def read_section(
    draft: Draft,
    section: Mapping[str, Any],
    names: str,
    ignored: str,
    key: str,
    *inside: str | int,
    harmless: Mapping[str, Collection[Any]] = _NONE,
) -> dict[str, Any]:
    """Return the values of a section by prefcli's names; refuse keys that nothing is for.

    names: the names that are read, as `name` or `name=prefcli's name`. ignored: names that are read
    elsewhere, or change nothing. harmless: by other names, the values that match what prefcli does.
    """
    targets = {name.partition("=")[0]: name.rpartition("=")[2] for name in names.split()}
    values = {}
    for name, value in section.items():
        if value is None or name in ignored.split():
            continue
        if name in targets:
            values[targets[name]] = value
        elif name not in harmless:
            refuse_unknown(draft, key, *inside, name)
        elif value not in harmless[name]:
            message = f"prefcli has no setting for {value!r}"
            hint = "remove it if the run does not need it"
            draft.refuse(key, message, *inside, name, code="RCP156", hint=hint)
    return values


def put_sources(draft: Draft, path: str, sources: SourceList, key: str) -> None:
    """Write data.train or data.eval."""
    if not sources or draft.sets(f"{path}.path"):
        draft.drop(key, f"the command line sets {path}")
        return
    values = [
        {name: value for name, value in source.items() if (name, value) != ("fraction", 1.0)}
        for source, _ in sources
    ]
    if len(values) == 1:
        draft.put(path, values[0], key, *sources[0][1])
    else:
        draft.put(path, values, key)
        for i, (_, inside) in enumerate(sources):
            draft.origins[f"{path}[{i}]"] = draft.at(key, *inside)
    if any({"fraction", "rows"} & source.keys() for source in values):
        draft.note(
            f"{path}: a part of the rows is drawn with prefcli's seed, so they differ from "
            f"{draft.tool}'s"
        )


def put_held_out(draft: Draft, share: Any, key: str, *inside: str | int) -> None:
    """Write data.eval for a share of the training rows that is split off at random."""
    if isinstance(share, int | float) and 0 < share < 1:
        draft.put("data.eval", {"from_train": share}, key, *inside)
        draft.note(
            f"data.eval.from_train draws prompts with prefcli's seed, so the held-out rows differ "
            f"from {draft.tool}'s, which draws rows"
        )
    elif is_on(share):
        draft.drop(key, "prefcli holds out a share of the prompts, not a number of rows", *inside)
        draft.note(
            f"the recipe does not evaluate: {draft.tool} holds out {share} rows, and the file does "
            "not say how many rows the data has; write data.eval: {from_train: SHARE}"
        )
