"""Raw rows -> canonical rows of the kind a method trains on; what is dropped is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import List as ListOf

from prefcli.data.arrow_cache import stored
from prefcli.data.readers import ROWS_TRIED
from prefcli.data.sources import RawRows
from prefcli.errors import DataError, Problem
from prefcli.formats import FORMATS, Format, RowError, detect
from prefcli.formats.chat import split_last_turn
from prefcli.methods import RowKind

COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "demonstration": ("messages", "prompt", "completion", "text"),
}
"""Columns a canonical row of each kind may have."""

_SHOWN_ERRORS = 10
_CHUNK = 1000
_MESSAGES = ListOf({"role": Value("string"), "content": Value("string")})


@dataclass(frozen=True)
class Place:
    """A source in words, for messages: the file, and the dotted path in the recipe."""

    file: str
    where: str


def convert(
    rows: RawRows,
    indices: Sequence[int],
    wanted: RowKind,
    place: Place,
    drop: Callable[[str, str], None],
    *,
    last_turn: bool = False,
) -> Dataset:
    """Canonical rows with `_file` and `_row` (its number there).

    drop: called for each of the others, with why it is one of them and its place.
    last_turn: a conversation becomes a prompt and its last turn, which alone is the completion.

    Pairs stay pairs where labelled rows are wanted, so that both sides are kept or dropped
    together; `pairs_to_labels` comes later. Raises DataError with the first few broken rows.
    """
    shape, blank = _shape(rows, indices, wanted, place)
    example: dict[str, Any] = {}
    example_place = ""
    errors: list[Problem] = []
    tables: list[pa.Table] = []
    chunk: list[dict[str, Any]] = []
    for index in indices:
        file, number = rows.place(index)
        here = f"{file}: row {number}"
        try:
            row = shape.convert({**blank, **rows.row(index)})
            if last_turn and "messages" in row:
                prompt, answer = split_last_turn(row["messages"], "messages")
                row = {"prompt": prompt, "completion": answer}
            if not example:
                example, example_place = row, here
            _check_texts(row)
            _check_style(row, example, example_place)
        except RowError as error:
            errors.append(Problem(str(error), place=here))
            continue
        if why := _why_drop(row, wanted):
            drop(why, here)
        elif not errors:
            chunk.append({**row, "_file": file, "_row": number})
        if len(chunk) == _CHUNK:
            tables.append(_table(chunk, shape, example, wanted))
            chunk = []
    if errors:
        raise _broken(errors, place)
    tables.append(_table(chunk, shape, example, wanted))
    return stored(pa.concat_tables(tables))


def pairs_to_labels(rows: Dataset) -> Dataset:
    """Each pair becomes a desirable and an undesirable row."""

    def side(column: str, label: bool) -> Dataset:
        labelled = rows.remove_columns("rejected" if column == "chosen" else "chosen")
        labelled = labelled.rename_column(column, "completion")
        return labelled.add_column("label", [label] * len(labelled))

    return concatenate_datasets([side("chosen", True), side("rejected", False)])


def _shape(
    rows: RawRows, indices: Sequence[int], wanted: RowKind, place: Place
) -> tuple[Format, dict[str, None]]:
    """The shape of the first row that has one, and a row of its columns with nothing in them.

    The rows before it may be the broken ones.
    """
    error = None
    for index in indices[:ROWS_TRIED]:
        try:
            row = rows.row(index)
            shape = detect(row)
        except RowError as unreadable:
            error = error or Problem(str(unreadable), place="{}: row {}".format(*rows.place(index)))
            continue
        if shape is not None and _adapts(shape.kind, wanted):
            return shape, dict.fromkeys(row)
        if shape is not None:
            raise _another_kind(shape, wanted, place)
    if error is not None:
        raise DataError(error)
    raise _no_shape(wanted, rows, place)


def _adapts(found: RowKind, wanted: RowKind) -> bool:
    return found == wanted or wanted == "demonstration" or (found, wanted) == ("pair", "labelled")


def _table(
    rows: list[dict[str, Any]], shape: Format, example: dict[str, Any], wanted: RowKind
) -> pa.Table:
    """`example`: any row of theirs, as it tells text from messages."""
    # Demonstrations come from every kind: the liked side of a pair, or what is labelled true.
    source = {name: name for name in example}
    if wanted == "demonstration" and shape.kind == "pair":
        source = {"prompt": "prompt", "completion": "chosen"}
    if wanted == "demonstration":
        source.pop("label", None)
    features: dict[str, Any] = {ours: _feature(example[theirs]) for ours, theirs in source.items()}
    features |= {"_file": Value("string"), "_row": Value("int64")}
    source |= {"_file": "_file", "_row": "_row"}
    schema = Features(features).arrow_schema
    return pa.Table.from_pydict(
        {ours: [row[theirs] for row in rows] for ours, theirs in source.items()}, schema=schema
    )


def _feature(value: Any) -> Any:
    if isinstance(value, bool):
        return Value("bool")
    return Value("string") if isinstance(value, str) else _MESSAGES


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [m["content"] for m in value] if isinstance(value, list) else []


def _check_texts(row: dict[str, Any]) -> None:
    """JSON may hold half of an emoji, as in a text cut in the middle; no tokenizer takes it."""
    for name, value in row.items():
        for text in _texts(value):
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    half = text[error.start : error.start + 1]
                    raise RowError(
                        f"half a character ({half!a}) in {name!r}",
                        "whole ones; the text was cut inside an emoji",
                    ) from None


def _check_style(row: dict[str, Any], example: dict[str, Any], example_place: str) -> None:
    for name, value in row.items():
        if isinstance(value, str) != isinstance(example[name], str):
            raise RowError(
                f"{_style(value)} in {name!r}",
                f"{_style(example[name])}, as in {example_place}",
            )


def _style(value: Any) -> str:
    return "text" if isinstance(value, str) else "messages"


def _why_drop(row: dict[str, Any], wanted: RowKind) -> str | None:
    for name in ("prompt", "chosen", "rejected", "completion", "text"):
        if name == "rejected" and wanted == "demonstration":
            continue
        if name in row and not any(text.strip() for text in _texts(row[name])):
            return f"empty {name}"
    if "messages" in row:
        turns = [m for m in row["messages"] if m["role"] == "assistant"]
        if any(not m["content"].strip() for m in turns):
            return "empty assistant message"
    if wanted != "demonstration" and "chosen" in row and row["chosen"] == row["rejected"]:
        return "chosen and rejected are identical"
    if wanted == "demonstration" and row.get("label") is False:
        return "labelled false, and sft trains on what is labelled true"
    return None


def _broken(errors: list[Problem], place: Place) -> DataError:
    shown = errors[:_SHOWN_ERRORS]
    if len(errors) > len(shown):
        rest = len(errors) - len(shown)
        shown.append(Problem(f"and {rest} more broken row{'s'[: rest > 1]}", place=place.file))
    return DataError(shown)


def _another_kind(shape: Format, wanted: RowKind, place: Place) -> DataError:
    return DataError(
        f"found {shape.columns}, which is {shape.name}; expected {_shapes(wanted)}",
        place=place.file,
        hint={
            "labelled": "train on labelled rows with `prefcli kto`",
            "demonstration": "train on demonstrations with `prefcli sft`",
            "pair": "train on pairs with `prefcli dpo`",
        }[shape.kind],
    )


def _no_shape(wanted: RowKind, rows: RawRows, place: Place) -> DataError:
    hint = f"rename columns with {place.where}.columns, as in {{prompt: question}}"
    names = set(rows.column_names)
    if {"chosen", "rejected"} <= names:
        others = names - {"chosen", "rejected"}
        name = others.pop() if len(others) == 1 else "..."
        hint = (
            "the prompt is not guessed from what chosen and rejected share; name its column "
            f"with {place.where}.columns: {{prompt: {name}}}"
        )
    found = ", ".join(rows.column_names) or "none"
    return DataError(
        f"found columns {found}; expected {_shapes(wanted)}", place=place.file, hint=hint
    )


def _shapes(wanted: RowKind) -> str:
    return "; or ".join(f.columns for f in FORMATS if _adapts(f.kind, wanted))
