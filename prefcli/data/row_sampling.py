"""Row indices: drawn with a seed, or spread evenly over the rows."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from prefcli.recipe.sections import Source


def draw_sorted(indices: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw `count` indices with a seed, in ascending order; all of them if there are fewer."""
    if count >= len(indices):
        return list(indices)
    return sorted(random.Random(seed).sample(indices, count))


def draw_share(
    rows: int, fraction: float, seed: int, sample: int | None = None
) -> tuple[list[int], int]:
    """Draw a share of the rows with a seed: (sorted indices, number of rows in the share).

    sample: draw at most that many rows of the share.
    """
    indices = draw_sorted(range(rows), max(1, round(rows * fraction)), seed)
    return (indices if sample is None else draw_sorted(indices, sample, seed)), len(indices)


def draw_rows(source: Source, rows: int, seed: int) -> list[int]:
    """Draw the share of the rows that a source limits itself to."""
    fraction = source.fraction if source.rows is None else min(1.0, source.rows / rows)
    return draw_share(rows, fraction, seed)[0]


def spread_indices(rows: int, count: int) -> list[int]:
    """Return `count` indices that are spread evenly over the rows; all of them if fewer."""
    count = min(count, rows)
    return [part * rows // count for part in range(count)]


def spread_order(rows: int, parts: int) -> Iterator[int]:
    """Yield all row indices: the first of each part of the rows, then the second of each, ..."""
    starts = spread_indices(rows, parts)
    for step in range(math.ceil(rows / len(starts)) if starts else 0):
        for start, end in pairwise([*starts, rows]):
            if start + step < end:
                yield start + step
