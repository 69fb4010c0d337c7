"""Raw rows -> canonical rows of the kind that a method trains on; dropped rows are counted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import List as ListOf

from prefcli.data.account import Account, InvalidRows
from prefcli.data.arrow_cache import store_table
from prefcli.data.readers import ROWS_TRIED
from prefcli.data.sources import RawRows
from prefcli.errors import DataError, Problem
from prefcli.formats import FORMATS, Format, RowError, detect
from prefcli.formats.chat import split_last_turn
from prefcli.formats.unread import cure, unread
from prefcli.methods import RowKind

COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "demonstration": ("messages", "prompt", "completion", "text"),
}
"""Columns a canonical row of each kind may have."""

_CHUNK = 1000
_MESSAGES = ListOf({"role": Value("string"), "content": Value("string")})


@dataclass(frozen=True)
class Place:
    """A source in messages: its file, and its dotted path in the recipe."""

    file: str
    where: str


def convert(
    rows: RawRows,
    indices: Sequence[int],
    kind: RowKind,
    place: Place,
    account: Account,
    *,
    last_turn: bool = False,
) -> Dataset:
    """Convert rows to canonical ones, with `_file` and `_row` (their number in the file).

    Pairs stay pairs for labelled rows, so that both sides are kept or dropped together; see
    `pairs_to_labels`. Raises DataError with the causes of invalid rows. Rows that are dropped, and
    what is not read, are counted in `account`.

    last_turn: a conversation becomes a prompt and its last turn, which is the completion.
    """
    row_format, blank = _detect(rows, indices, kind, place)
    example: dict[str, Any] = {}
    example_place = ""
    invalid, invalid_but_dropped = InvalidRows(), InvalidRows()
    tables: list[pa.Table] = []
    chunk: list[dict[str, Any]] = []
    for index in indices:
        file, number = rows.place(index)
        row_place = f"{file}: row {number}"
        try:
            raw = {**blank, **rows.row(index)}
            row = row_format.convert(raw)
            if last_turn and "messages" in row:
                prompt, answer = split_last_turn(row["messages"], "messages")
                row = {"prompt": prompt, "completion": answer}
            if not example:
                example, example_place = row, row_place
            _check_surrogates(row)
            _check_types(row, example, example_place)
        except RowError as error:
            if error.drop is None:
                invalid.add(error, row_place)
            else:
                invalid_but_dropped.add(error, row_place)
                account.drop(error.drop, row_place, error.actual)
            continue
        if values := _missing(unread(raw, row_format.reads), row):
            account.leave_unread(values, functools.partial(str, row_place))
        if reason := _drop_reason(row, kind):
            account.drop(reason, row_place)
        elif not invalid.count:
            chunk.append({**row, "_file": file, "_row": number})
        if len(chunk) == _CHUNK:
            tables.append(_table(chunk, row_format, example, kind))
            chunk = []
    if invalid.count:
        raise invalid.error(len(indices), place.file)
    if invalid_but_dropped.count == len(indices):
        raise invalid_but_dropped.error(len(indices), place.file)
    tables.append(_table(chunk, row_format, example, kind))
    return store_table(pa.concat_tables(tables))


def pairs_to_labels(rows: Dataset) -> Dataset:
    """Turn each pair into a desirable and an undesirable row."""

    def side(column: str, label: bool) -> Dataset:
        labelled = rows.remove_columns("rejected" if column == "chosen" else "chosen")
        labelled = labelled.rename_column(column, "completion")
        return labelled.add_column("label", [label] * len(labelled))

    return concatenate_datasets([side("chosen", True), side("rejected", False)])


def _detect(
    rows: RawRows, indices: Sequence[int], kind: RowKind, place: Place
) -> tuple[Format, dict[str, None]]:
    """Return the format of the first row that has one, and a row of its columns without values.

    Earlier rows may be the invalid ones.
    """
    first_error = None
    for index in indices[:ROWS_TRIED]:
        try:
            row = rows.row(index)
            row_format = detect(row)
        except RowError as error:
            first_error = first_error or Problem(
                str(error), place="{}: row {}".format(*rows.place(index)), code="DAT010"
            )
            continue
        if row_format is not None and _is_usable(row_format.kind, kind):
            return row_format, dict.fromkeys(row)
        if row_format is not None:
            raise _wrong_kind(row_format, kind, place)
    if first_error is not None:
        raise DataError(first_error)
    raise _no_format(kind, rows, place)


def _is_usable(source_kind: RowKind, kind: RowKind) -> bool:
    return (
        source_kind == kind
        or kind == "demonstration"
        or (source_kind, kind) == ("pair", "labelled")
    )


def _table(
    rows: list[dict[str, Any]], row_format: Format, example: dict[str, Any], kind: RowKind
) -> pa.Table:
    """Build an Arrow table. `example`: any of the rows; it decides between text and messages."""
    # Every kind yields demonstrations: the chosen side of a pair, or the rows labelled true.
    columns = {name: name for name in example}
    if kind == "demonstration" and row_format.kind == "pair":
        columns = {"prompt": "prompt", "completion": "chosen"}
    if kind == "demonstration":
        columns.pop("label", None)
    features: dict[str, Any] = {
        name: _feature(example[original]) for name, original in columns.items()
    }
    features |= {"_file": Value("string"), "_row": Value("int64")}
    columns |= {"_file": "_file", "_row": "_row"}
    schema = Features(features).arrow_schema
    return pa.Table.from_pydict(
        {name: [row[original] for row in rows] for name, original in columns.items()},
        schema=schema,
    )


def _feature(value: Any) -> Any:
    if isinstance(value, bool):
        return Value("bool")
    return Value("string") if isinstance(value, str) else _MESSAGES


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [m["content"] for m in value] if isinstance(value, list) else []


def _missing(values: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the unread values without the texts that other columns of the row contain."""
    return {
        name: value
        for name, value in values.items()
        if not isinstance(value, str)
        or cure(name) is None
        or not any(value.strip() in text for part in row.values() for text in _texts(part))
    }


def _check_surrogates(row: dict[str, Any]) -> None:
    """Refuse half of an emoji, which JSON allows and no tokenizer accepts."""
    for name, value in row.items():
        for text in _texts(value):
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    surrogate = text[error.start : error.start + 1]
                    raise RowError(
                        f"an invalid surrogate {surrogate!a} in {name!r}",
                        "complete characters; the text was cut inside an emoji",
                    ) from None


def _check_types(row: dict[str, Any], example: dict[str, Any], example_place: str) -> None:
    for name, value in row.items():
        if isinstance(value, str) != isinstance(example[name], str):
            raise RowError(
                f"{_type_name(value)} in {name!r}",
                f"{_type_name(example[name])}, as in {example_place}",
            )


def _type_name(value: Any) -> str:
    return "text" if isinstance(value, str) else "messages"


def _drop_reason(row: dict[str, Any], kind: RowKind) -> str | None:
    for name in ("prompt", "chosen", "rejected", "completion", "text"):
        if name == "rejected" and kind == "demonstration":
            continue
        if name in row and not any(text.strip() for text in _texts(row[name])):
            return f"empty {name}"
    if "messages" in row:
        turns = [m for m in row["messages"] if m["role"] == "assistant"]
        if any(not m["content"].strip() for m in turns):
            return "empty assistant message"
    if kind != "demonstration" and "chosen" in row and row["chosen"] == row["rejected"]:
        return "chosen and rejected are identical"
    if kind == "demonstration" and row.get("label") is False:
        return "label is false (sft uses only rows labelled true)"
    return None


def _wrong_kind(row_format: Format, kind: RowKind, place: Place) -> DataError:
    return DataError(
        f"found {row_format.columns}, which is {row_format.name}; expected {_columns_for(kind)}",
        code="DAT012",
        place=place.file,
        hint={
            "labelled": "train on labelled rows with `prefcli kto`",
            "demonstration": "train on demonstrations with `prefcli sft`",
            "pair": "train on pairs with `prefcli dpo`",
        }[row_format.kind],
    )


def _no_format(kind: RowKind, rows: RawRows, place: Place) -> DataError:
    hint = f"rename columns with {place.where}.columns, for example {{prompt: question}}"
    names = set(rows.column_names)
    if {"chosen", "rejected"} <= names:
        others = names - {"chosen", "rejected"}
        name = others.pop() if len(others) == 1 else "..."
        hint = (
            "the prompt is not derived from the common start of chosen and rejected; name its "
            f"column with {place.where}.columns: {{prompt: {name}}}"
        )
    columns = ", ".join(rows.column_names) or "none"
    return DataError(
        f"found columns {columns}; expected {_columns_for(kind)}",
        code="DAT011",
        place=place.file,
        hint=hint,
    )


def _columns_for(kind: RowKind) -> str:
    return "; or ".join(f.columns for f in FORMATS if _is_usable(f.kind, kind))
