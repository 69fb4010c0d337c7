"""The rows of data.train without some of them, or with swapped labels, as a file of their own."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcli.data.convert import Place
from prefcli.data.row_sampling import draw_share
from prefcli.data.row_writer import row_writer
from prefcli.data.sources import read
from prefcli.data.split import Split
from prefcli.errors import Problem, RecipeError
from prefcli.formats.base import Raw
from prefcli.formats.contents import score_columns
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source
from prefcli.text import counted

_SIDES = ("chosen", "rejected")
_READ_BY = ("columns", "chat", "prompt_template")
"""Settings of a source that its rows are read by, in whatever file they are."""


@dataclass(frozen=True)
class CleanFile:
    """A written file."""

    path: str
    rows: int
    dropped: dict[str, int]
    """Dropped rows by reason; a row with several reasons counts for the first."""
    swapped: int
    source: dict[str, Any]
    """data.train for this file."""

    def lines(self) -> list[str]:
        """Describe the file, and how to train on it."""
        dropped = "".join(f", {count:,} dropped: {why}" for why, count in self.dropped.items())
        swapped = f", {self.swapped:,} with chosen and rejected swapped" if self.swapped else ""
        return [
            f"{counted(self.rows, 'row')} written to {self.path}{dropped}{swapped}",
            f"train on them with data.train='{json.dumps(self.source)}'",
        ]


def write_clean(
    recipe: Recipe,
    split: Split,
    output: Path,
    *,
    drop: Mapping[str, Iterable[int]],
    swap: Iterable[int],
) -> CleanFile:
    """Write the rows of data.train with their columns. Raises RecipeError.

    Rows that the audit drops are written, as are the prompts of data.eval.from_train.

    drop: rows of the split by reason. swap: rows whose preference is turned round.
    """
    first = recipe.data.train[0]
    settings = {name: getattr(first, name) for name in _READ_BY}
    if any(
        getattr(source, name) != settings[name] for source in recipe.data.train for name in settings
    ):
        raise RecipeError(
            Problem(
                f"the sources differ in {', '.join(_READ_BY)}, so that one file can't hold them",
                path="data.train",
                hint="clean one source at a time: data.train={path: FILE, ...}",
                code="RCP043",
            )
        )
    files, numbers = split.rows["_file"][:], split.rows["_row"][:]
    reasons: dict[tuple[str, int], str] = {}
    for reason, dropped in drop.items():
        for row in dropped:
            reasons.setdefault((files[row], numbers[row]), reason)
    swapped_places = {(files[row], numbers[row]) for row in swap} - reasons.keys()
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        counts.clear()
        for at, source in enumerate(recipe.data.train):
            for place, row in _raw_rows(recipe, at):
                if place in reasons:
                    counts[reasons[place]] += 1
                    continue
                counts["written"] += 1
                counts["swapped"] += place in swapped_places
                yield _swapped(row, source) if place in swapped_places else dict(row)

    written = output.with_name(f"{output.name}.tmp")
    try:
        row_writer(output.suffix)(written, rows)
        os.replace(written, output)
    except OSError as error:
        raise RecipeError(
            f"can't write {output}: {error.strerror}",
            code="RCP027",
            hint="free space on the disk, or name another file with --write-clean",
        ) from None
    finally:
        written.unlink(missing_ok=True)
    return CleanFile(
        path=str(output),
        rows=counts["written"],
        dropped={reason: counts[reason] for reason in drop},
        swapped=counts["swapped"],
        source={"path": str(output), **{name: value for name, value in settings.items() if value}},
    )


def _raw_rows(recipe: Recipe, at: int) -> Iterator[tuple[tuple[str, int], Raw]]:
    """Yield the rows that are drawn from a source, with their file and number."""
    sources = recipe.data.train
    raw = read(sources[at], Place.of(sources, at, "data.train").where)
    indices, _ = draw_share(len(raw), sources[at].share_of(len(raw)), recipe.seed)
    for index in indices:
        yield raw.place(index), raw.as_written(index)


def _swapped(row: Raw, source: Source) -> dict[str, Any]:
    """Swap the sides of a pair, and all columns that are about one side, such as scores."""
    sides = tuple(source.columns.get(side, side) for side in _SIDES)
    changed = dict(row)
    for one, other in [sides, *score_columns(row)]:
        changed[one], changed[other] = row.get(other), row.get(one)
    return changed
