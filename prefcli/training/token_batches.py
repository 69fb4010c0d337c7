"""Micro-batches filled up to a number of tokens, and rows dealt to processes by length.

A step trains on the rows that it would have in micro-batches of a fixed number of rows. Only their
grouping differs: fewer and fuller micro-batches, and about as many tokens on each process, since
the slowest process decides when a step ends.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from prefcli.data.lengths import Ints
from prefcli.data.run_datasets import RunDatasets
from prefcli.methods import Method
from prefcli.methods.trainers import TrainerAdapter
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import repeated_rows

_ROWS_READ = 1000
"""Rows whose lengths are read at once."""

MicroBatch = list[int]
"""Row numbers of one process."""


@dataclass(frozen=True)
class TokenBudget:
    """How the rows of a step are grouped into micro-batches, and why."""

    tokens: int | None
    """Largest number of tokens in a micro-batch; None if it has a fixed number of rows."""
    accumulation: int
    """Micro-batches of a step that has a fixed number of rows in each."""
    why: str
    least: int = 1
    """Smallest number of micro-batches per step."""

    def lines(self) -> list[str]:
        if self.tokens is None:
            return [f"micro-batches: a fixed number of rows, since {self.why}"]
        return [f"micro-batches: filled up to {self.tokens:,} tokens, {self.why}"]


def choose_token_budget(
    recipe: Recipe,
    method: Method,
    datasets: RunDatasets,
    *,
    world: int,
    accumulation: int,
    packed: Callable[[], bool],
    kind: str,
    strategy: Strategy = "single",
) -> TokenBudget:
    """Decide whether micro-batches are filled by tokens, and up to how many.

    world: processes. accumulation: micro-batches of a step that has a fixed number of rows in each.
    packed: returns whether the packed forward computes the rows. kind: of the device.
    """
    setting, size = recipe.performance.tokens_per_batch, recipe.training.train_batch_size

    def by_rows(why: str) -> TokenBudget:
        return TokenBudget(None, accumulation, why)

    if method.needs_judge:
        return by_rows("completions have no length before they are sampled")
    if setting == "off":
        return by_rows("performance.tokens_per_batch is off")
    if strategy in ("zero2", "zero3"):
        # accelerate lets it step after each micro-batch that the trainer does not count.
        return by_rows("DeepSpeed counts the micro-batches of a step itself")
    if not method.rows_are_independent:
        return by_rows(f"the loss of {method.name} depends on which rows share a micro-batch")
    if setting == "auto" and (kind != "cuda" or world == 1):
        return by_rows("auto fills them by tokens on several GPUs only")
    if not packed():
        return by_rows("trl's own forward pass computes padded rows")
    # With sft_mix a micro-batch also has demonstrations: no more than it would have otherwise.
    least = 1 if datasets.sft_mix is None else accumulation
    lengths = datasets.train.lengths
    if setting != "auto":
        longest = size * lengths.longest_packed
        if setting <= longest:
            return TokenBudget(setting, accumulation, "as performance.tokens_per_batch says", least)
        why = f"{size} times the longest row (performance.tokens_per_batch is {setting:,})"
        return TokenBudget(longest, accumulation, why, least)
    largest = lengths.packed(size, datasets.sampled_epochs(recipe))
    return TokenBudget(largest, accumulation, f"about as many as the largest {size} rows", least)


def packed_lengths(dataset: Dataset, adapter: TrainerAdapter, max_length: int) -> Ints:
    """Count the tokens of each row in a packed batch, from its columns."""
    names = adapter.token_columns
    parts: defaultdict[str, list[Ints]] = defaultdict(list)
    for table in dataset.select_columns([*names]).with_format("arrow").iter(_ROWS_READ):
        columns = [table[name].combine_chunks() for name in names]
        for name, column in zip(names, columns, strict=True):
            counts = column.value_lengths()
            parts[name].append(counts.to_numpy(zero_copy_only=False).astype(np.int64))
        if adapter.sides_have_prompt:
            parts["shared"].append(_common_beginnings(*columns))
    lengths = {name: np.concatenate(counts) for name, counts in parts.items()}
    packed: Ints = adapter.packed_length(lengths, max_length)
    return packed


def _common_beginnings(first: Any, second: Any) -> Ints:
    """Count the tokens that both lists of each row begin with. first, second: arrow's lists."""
    ids = [column.values.to_numpy(zero_copy_only=False) for column in (first, second)]
    ends = [column.offsets.to_numpy().tolist() for column in (first, second)]
    counts = []
    for a, b, a_end, b_end in zip(*(e[:-1] for e in ends), *(e[1:] for e in ends), strict=True):
        length = min(a_end - a, b_end - b)
        differs = ids[0][a : a + length] != ids[1][b : b + length]
        counts.append(int(differs.argmax()) if differs.any() else length)
    return np.array(counts, dtype=np.int64)


def deal_rows(
    rows: Sequence[int], lengths: Ints, budget: int, processes: int = 1, least: int = 1
) -> list[list[MicroBatch]]:
    """Deal the rows of a step: by micro-batch, then by process.

    All processes have equally many micro-batches, and equally many rows in each one: sharded
    weights wait for all processes in every pass, and trl gathers values of rows.

    rows: a multiple of the processes. budget: tokens of a micro-batch; a longer row is alone in
    its micro-batch. least: smallest number of micro-batches.
    """
    longest_first = sorted(rows, key=lambda row: -lengths[row])
    tokens = lengths[longest_first]
    most = len(rows) // processes
    budget = max(budget, int(tokens[0]))
    for count in range(max(least, math.ceil(tokens.sum() / (budget * processes))), most):
        dealt, largest = _deal(longest_first, lengths, count, processes)
        if largest <= budget:
            return dealt
    return _deal(longest_first, lengths, most, processes)[0]


def _deal(
    longest_first: Sequence[int], lengths: Ints, count: int, processes: int
) -> tuple[list[list[MicroBatch]], int]:
    """Deal rows into `count` micro-batches; return them and the tokens of the largest.

    A row goes where the fewest tokens are: first to a micro-batch, together with as many rows as
    there are other processes, then to one of the processes that lack a row of this micro-batch.
    """
    shared: list[list[int]] = [[] for _ in range(count)]
    tokens = np.zeros(count, np.int64)
    for rows in _chunks(longest_first, processes):
        at = tokens.argmin()
        shared[at] += rows
        tokens[at] += lengths[rows].sum()
    dealt, of_step, largest = [], np.zeros(processes, np.int64), 0
    for rows in shared:
        own: list[MicroBatch] = [[] for _ in range(processes)]
        of_batch = np.zeros(processes, np.int64)
        for row in rows:
            lacking = [p for p in range(processes) if len(own[p]) < len(rows) // processes]
            process = min(lacking, key=lambda p: (of_batch[p], of_step[p]))
            own[process].append(row)
            of_batch[process] += lengths[row]
            of_step[process] += lengths[row]
        dealt.append(own)
        largest = max(largest, int(of_batch.max()))
    return dealt, largest


class TokenBatchSampler(Sampler[list[MicroBatch]]):
    """The micro-batches of each optimizer step for one process."""

    def __init__(
        self,
        order: Sampler[int],
        lengths: Ints,
        budget: TokenBudget,
        *,
        micro_batch: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """order: the sampler of the rows. micro_batch: rows of one process if their number is
        fixed. lengths: tokens of each row."""
        assert budget.tokens is not None
        self._order, self._lengths, self._budget = order, lengths, budget.tokens
        self._least, self._accumulation = budget.least, budget.accumulation
        self._micro_batch, self._process, self._processes = micro_batch, process, processes

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    @property
    def micro_batches(self) -> int:
        """Count the micro-batches of an epoch that have a fixed number of rows."""
        return math.ceil(len(self._lengths) / (self._micro_batch * self._processes))

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return math.ceil(self.micro_batches / self._accumulation)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        rows = list(self._order)
        every = self._micro_batch * self._processes
        # As accelerate fills the last batches of an epoch: with rows from its beginning.
        repeated = repeated_rows(len(rows), every, self._processes)
        rows += itertools.islice(itertools.cycle(rows[:every]), repeated)
        for step in _chunks(rows, every * self._accumulation):
            if _ends_in_smaller_batch(len(step), every):
                yield _chunks(step, every)
                continue
            dealt = deal_rows(step, self._lengths, self._budget, self._processes, self._least)
            yield [micro_batch[self._process] for micro_batch in dealt]


def micro_batch_weights(sizes: Sequence[int], micro_batch: int) -> Sequence[int]:
    """Return the weights of a step's micro-batches in means over its rows.

    sizes: rows of each micro-batch on one process. micro_batch: rows if their number is fixed.
    """
    if _ends_in_smaller_batch(sum(sizes), micro_batch):
        return [micro_batch] * len(sizes)
    return sizes


def _ends_in_smaller_batch(rows: int, micro_batch: int) -> bool:
    """Return whether micro-batches with a fixed number of rows end in a smaller one.

    trl averages the losses of micro-batches, so the rows of a smaller one count more. Such a step,
    the last of an epoch on one process, keeps its micro-batches.
    """
    return rows > micro_batch and rows % micro_batch > 0


def _chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[at : at + size]) for at in range(0, len(rows), size)]


class MicroBatchDataset(TorchDataset[list[dict[str, Any]]]):
    """A dataset whose items are the rows of micro-batches."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, micro_batch: MicroBatch) -> list[dict[str, Any]]:
        return [self._rows[row] for row in micro_batch]
