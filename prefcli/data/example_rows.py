"""Rows with their text, for the page of the audit: the first ones, and those of each finding."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prefcli.data.convert import Place
from prefcli.data.run_datasets import RunDatasets, active_sft_mix
from prefcli.data.sources import read
from prefcli.data.split import Split
from prefcli.formats import RowError
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source

_FIRST_ROWS = 3

Texts = dict[str, str]
"""The columns of a row as text."""


class ExampleRow(NamedTuple):
    """A row with its file and number."""

    place: str
    texts: Texts


class ExampleRows(NamedTuple):
    """Rows of a split."""

    first: list[ExampleRow]
    """The first rows as they are trained on."""
    findings: dict[str, list[ExampleRow]]
    """The first rows of each finding as they are in their files."""
    dropped: dict[str, list[ExampleRow]]
    """The first dropped rows of each reason as they are in their files."""


def example_rows(recipe: Recipe, method: Method, datasets: RunDatasets) -> dict[str, ExampleRows]:
    """Return rows of each split by its name. The sources are read once more."""
    places = {place for split in datasets.splits for place in _places(split)}
    raw = dict(_raw_rows(recipe, method, places))
    return {
        split.name: ExampleRows(
            rows_of(split, range(min(_FIRST_ROWS, len(split.rows)))),
            {finding.name: _known(raw, finding.first) for finding in split.findings},
            {reason: _known(raw, rows.first) for reason, rows in split.dropped.items()},
        )
        for split in datasets.splits
    }


def rows_of(split: Split, indices: Iterable[int]) -> list[ExampleRow]:
    """Return rows of a split as they are trained on."""
    columns = split.for_trl()
    return [ExampleRow(split.place(at), dict(_texts(columns[at]))) for at in indices]


def _places(split: Split) -> Iterator[str]:
    for finding in split.findings:
        yield from finding.first
    for rows in split.dropped.values():
        yield from rows.first


def _known(raw: Mapping[str, Texts], places: Sequence[str]) -> list[ExampleRow]:
    return [ExampleRow(place, raw[place]) for place in places if place in raw]


def _raw_rows(
    recipe: Recipe, method: Method, places: Collection[str]
) -> Iterator[tuple[str, Texts]]:
    """Yield the rows at the places, FILE: row N, as they are in the sources."""
    numbers: dict[str, list[int]] = {}
    for place in places:
        file, _, text = place.rpartition(": row ")
        numbers.setdefault(file, []).append(int(text))
    for sources, where in _sources(recipe, method):
        for at, source in enumerate(sources):
            for part in read(source, Place.of(sources, at, where).where).parts:
                for number in numbers.get(part.name, ()):
                    index = bisect_left(part.numbers, number)
                    if index < len(part.numbers) and part.numbers[index] == number:
                        try:
                            texts = dict(_texts(part.rows[index]))
                        except RowError as error:
                            texts = {"error": str(error)}
                        yield f"{part.name}: row {number}", texts


def _sources(recipe: Recipe, method: Method) -> Iterator[tuple[Sequence[Source], str]]:
    yield recipe.data.train, "data.train"
    if recipe.data.eval_sources:
        yield recipe.data.eval_sources, "data.eval"
    if (mix := active_sft_mix(recipe, method)) is not None:
        yield mix.data, "sft_mix.data"


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the columns that have a value; turns are one paragraph each."""
    for name, value in row.items():
        if value is None:
            continue
        if isinstance(value, str):
            yield name, value
        elif _are_turns(value):
            yield name, "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
        else:
            yield name, json.dumps(value, ensure_ascii=False, default=str)


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )
