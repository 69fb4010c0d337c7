"""Batches of an evaluation over several processes, in which each row counts once.

accelerate fills the last batches with rows from the beginning, which then count twice. Skipping
them is not possible: every process must run the model equally often. So the rows that do not fill
a whole round form a smaller one. The rows that are left, fewer than there are processes, are scored
by every process, which does not change a mean over processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler


@dataclass(frozen=True)
class Batch:
    """A batch of one process."""

    indices: list[int]
    rows: int
    """Rows of all processes together, each counted once."""
    shared: bool
    """All processes score the same rows."""


class EvalBatches(Sampler[list[int]]):
    """Indices for one process, in order; the same number of batches on each process."""

    def __init__(self, rows: int, size: int, process: int = 0, processes: int = 1) -> None:
        """size: rows of a batch on one process."""
        self.batches = list(_batches(rows, size, process, processes))

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.indices for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _batches(rows: int, size: int, process: int, processes: int) -> Iterator[Batch]:
    at = 0
    while per_process := min(size, (rows - at) // processes):
        start = at + process * per_process
        indices = list(range(start, start + per_process))
        yield Batch(indices, per_process * processes, shared=False)
        at += per_process * processes
    while at < rows:
        end = min(at + size, rows)
        yield Batch(list(range(at, end)), end - at, shared=True)
        at = end
