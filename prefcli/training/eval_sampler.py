"""The batches of an evaluation over several processes: each row counts once, on any number of them.

accelerate fills the last batches up with rows from the beginning, which then count twice. Leaving
them out is no way either: every process must run the model equally often. So what does not fill a
whole round goes in a smaller one, and the rows that are then still left, fewer than there are
processes, are scored by every process alike, which leaves each mean over processes what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler


@dataclass(frozen=True)
class Batch:
    """Of one process."""

    indices: list[int]
    rows: int
    """Of all processes together, each counted once."""
    shared: bool
    """Do all processes score the same rows?"""


class EvalBatches(Sampler[list[int]]):
    """Indices for one process, in order; as many batches on each."""

    def __init__(self, rows: int, size: int, process: int = 0, processes: int = 1) -> None:
        """size: rows of a batch on one process."""
        self.batches = list(_batches(rows, size, process, processes))

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.indices for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _batches(rows: int, size: int, process: int, processes: int) -> Iterator[Batch]:
    at = 0
    while each := min(size, (rows - at) // processes):
        start = at + process * each
        yield Batch(list(range(start, start + each)), each * processes, shared=False)
        at += each * processes
    while at < rows:
        end = min(at + size, rows)
        yield Batch(list(range(at, end)), end - at, shared=True)
        at = end
