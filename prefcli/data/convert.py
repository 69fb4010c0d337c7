"""Raw rows -> canonical rows of the kind a method trains on; what is dropped is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import List as ListOf

from prefcli.errors import DataError, Problem
from prefcli.formats import FORMATS, Format, Raw, RowError, detect
from prefcli.methods import RowKind

COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "demonstration": ("messages", "prompt", "completion", "text"),
}
"""Columns a canonical row of each kind may have."""

_SHOWN_ERRORS = 10
_MESSAGES = ListOf({"role": Value("string"), "content": Value("string")})


@dataclass(frozen=True)
class Place:
    """A source in words, for messages: the file, and the dotted path in the recipe."""

    file: str
    where: str


def convert(
    rows: Dataset, indices: Sequence[int], wanted: RowKind, place: Place, num_proc: int | None
) -> Dataset:
    """Canonical rows plus `_row` (1-based, in the source) and `_drop` (why it is left out)."""
    first = rows[indices[0]]
    shape = detect(first)
    if shape is None or not _adapts(shape.kind, wanted):
        raise _no_such_shape(shape, wanted, rows, place)
    try:
        sample = _canonical(shape, first, wanted)
    except RowError as error:
        raise DataError(str(error), place=f"{place.file}: row {indices[0] + 1}") from None
    features = {name: _feature(value) for name, value in sample.items()}
    blank = dict.fromkeys(sample)

    def one(raw: Raw, index: int) -> dict[str, Any]:
        extra = {"_row": index + 1, "_drop": None, "_error": None}
        try:
            row = _canonical(shape, raw, wanted)
            for name, value in row.items():
                if isinstance(value, str) != isinstance(sample[name], str):
                    raise RowError(
                        f"{_style(value)} in {name!r}",
                        f"{_style(sample[name])}, as in row {indices[0] + 1}",
                    )
        except RowError as error:
            return {**blank, **extra, "_error": str(error)}
        return {**row, **extra, "_drop": _why_drop(row, wanted)}

    converted = rows.select(indices).map(
        lambda raw, i: one(raw, indices[i]),
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features(
            {
                **features,
                "_row": Value("int64"),
                "_drop": Value("string"),
                "_error": Value("string"),
            }
        ),
        load_from_cache_file=False,
        num_proc=num_proc,
    )
    _raise_row_errors(converted, place)
    return converted.remove_columns("_error")


def pairs_to_labels(rows: Dataset) -> Dataset:
    """Each pair becomes a desirable and an undesirable row."""

    def side(column: str, label: bool) -> Dataset:
        labelled = rows.remove_columns("rejected" if column == "chosen" else "chosen")
        labelled = labelled.rename_column(column, "completion")
        return labelled.add_column("label", [label] * len(labelled))

    return concatenate_datasets([side("chosen", True), side("rejected", False)])


def _adapts(found: RowKind, wanted: RowKind) -> bool:
    return found == wanted or wanted == "demonstration" or (found, wanted) == ("pair", "labelled")


def _canonical(shape: Format, raw: Raw, wanted: RowKind) -> dict[str, Any]:
    row = shape.convert(raw)
    if wanted != "demonstration" or shape.kind == "demonstration":
        return row
    if shape.kind == "pair":
        return {"prompt": row["prompt"], "completion": row["chosen"]}
    return row


def _feature(value: Any) -> Any:
    if isinstance(value, bool):
        return Value("bool")
    return Value("string") if isinstance(value, str) else _MESSAGES


def _style(value: Any) -> str:
    return "text" if isinstance(value, str) else "messages"


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return not any(m["content"].strip() for m in value)


def _why_drop(row: dict[str, Any], wanted: RowKind) -> str | None:
    for name in ("prompt", "chosen", "rejected", "completion", "text"):
        if name in row and _is_empty(row[name]):
            return f"empty {name}"
    if "messages" in row:
        turns = [m for m in row["messages"] if m["role"] == "assistant"]
        if any(not m["content"].strip() for m in turns):
            return "empty assistant message"
    if "chosen" in row and row["chosen"] == row["rejected"]:
        return "chosen and rejected are identical"
    if wanted == "demonstration" and row.get("label") is False:
        return "labelled false, and sft trains on what is labelled true"
    return None


def _raise_row_errors(converted: Dataset, place: Place) -> None:
    errors = [
        (row, error)
        for row, error in zip(converted["_row"], converted["_error"], strict=True)
        if error
    ]
    if not errors:
        return
    problems = [
        Problem(error, place=f"{place.file}: row {row}") for row, error in errors[:_SHOWN_ERRORS]
    ]
    if len(errors) > _SHOWN_ERRORS:
        problems.append(
            Problem(f"and {len(errors) - _SHOWN_ERRORS} more rows like these", place=place.file)
        )
    raise DataError(problems)


def _no_such_shape(
    shape: Format | None, wanted: RowKind, rows: Dataset, place: Place
) -> DataError:
    found = ", ".join(rows.column_names)
    fitting = [f for f in FORMATS if _adapts(f.kind, wanted)]
    shapes = "; or ".join(f.columns for f in fitting)
    if shape is not None:
        use = {
            "labelled": "train on labelled rows with `prefcli kto`",
            "demonstration": "train on demonstrations with `prefcli sft`",
            "pair": "train on pairs with `prefcli dpo`",
        }[shape.kind]
        return DataError(
            f"found {shape.columns}, which is {shape.name}; expected {shapes}",
            place=place.file,
            hint=use,
        )
    hint = f"rename columns with {place.where}.columns, as in {{prompt: question}}"
    if wanted == "pair" and {"chosen", "rejected"} <= set(rows.column_names):
        hint = (
            "the prompt is not guessed from what chosen and rejected share; name its column "
            f"with {place.where}.columns: {{prompt: ...}}"
        )
    return DataError(
        f"found columns {found}; expected {shapes}", place=place.file, hint=hint
    )
