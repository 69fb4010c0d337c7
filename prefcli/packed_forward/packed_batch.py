"""A padded batch as one row without padding, in which rows share a common prefix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import torch

_ALIKE = 0.9
"""Share of the longest common prefix that a row must have to join a group."""


@dataclass(frozen=True)
class Group:
    """Rows of the batch with a common prefix. Numbers count tokens of the packed row."""

    start: int
    prefix: int
    """Length of the common prefix."""
    branches: tuple[int, ...]
    """Tokens of each row after the prefix."""

    @property
    def end(self) -> int:
        return self.start + self.prefix + sum(self.branches)


@dataclass(frozen=True)
class Spans:
    """Runs of queries, and the keys that each run attends to."""

    query_ends: torch.Tensor
    """(runs + 1,) in int32, from 0: where each run ends among the packed row's tokens."""
    key_ends: torch.Tensor
    """(runs + 1,) in int32, from 0: among `keys`."""
    keys: torch.Tensor
    """Packed tokens by run; a shared prefix is repeated for each run that attends to it."""
    longest_queries: int
    longest_keys: int


@dataclass(frozen=True)
class PackedBatch:
    """The map between a (rows, length) batch and one packed row of `size` tokens."""

    token_indices: torch.Tensor
    """(size,) flat index into the batch of each packed token."""
    positions: torch.Tensor
    """(size,) position of each packed token in its own row."""
    sources: torch.Tensor
    """(labels,) packed token whose hidden state scores the label."""
    scored: torch.Tensor
    """(labels,) flat index into (rows, length - 1) of each label."""
    groups: tuple[Group, ...]
    place: torch.Tensor
    """(rows, length) packed token of each; -1 for padding."""
    calls: Counter[str] = field(default_factory=Counter, repr=False, compare=False)
    """Calls of each attention function in the same run."""
    _masks: dict[tuple[int, int, int | None, torch.dtype], torch.Tensor] = field(
        default_factory=dict, repr=False
    )

    @property
    def size(self) -> int:
        return len(self.token_indices)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(g.prefix + max(g.branches, default=0) for g in self.groups)

    def reached(self, window: int | None) -> int | None:
        """Return the window if a row is longer than it."""
        return window if window and window < self.longest else None

    @cached_property
    def spans(self) -> Spans:
        queries, keys, seen = [], [], []
        for group in self.groups:
            shared = torch.arange(group.start, group.start + group.prefix)
            at = group.start
            for own, before in (
                (group.prefix, shared[:0]),
                *((branch, shared) for branch in group.branches),
            ):
                if own:
                    queries.append(own)
                    keys.append(len(before) + own)
                    seen += [before, torch.arange(at, at + own)]
                at += own
        device = self.token_indices.device

        def ends(lengths: list[int]) -> torch.Tensor:
            found = torch.tensor([0, *lengths]).cumsum(0)
            return found.to(device, torch.int32)

        return Spans(ends(queries), ends(keys), torch.cat(seen).to(device), max(queries), max(keys))

    def mask(self, queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """(queries, keys), to be added to the scores of the last `queries` of `keys` tokens."""
        name = (queries, keys, window, like.dtype)
        if name not in self._masks:
            at = torch.arange(keys - queries, keys, device=like.device)[:, None]
            key = torch.arange(keys, device=like.device)[None]
            seen = key <= at
            if window is not None:
                seen &= key > at - window
            hidden = like.new_full((queries, keys), -torch.inf)
            self._masks[name] = hidden.masked_fill_(seen, 0.0)
        return self._masks[name]


def layout_of(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor,
    calls: Counter[str] | None = None,
) -> PackedBatch:
    """Pack a batch of three (rows, length) tensors; -100 marks tokens without a label.

    calls: counter of the run.

    A label is scored by the hidden state before it, which for the first of a branch is the last of
    the shared beginning.
    """
    rows, length = input_ids.shape
    ids = input_ids.cpu()
    real = torch.ones_like(ids) if attention_mask is None else attention_mask.cpu()
    columns = [row.nonzero().flatten() for row in real]
    texts = [row[at] for row, at in zip(ids, columns, strict=True)]
    place = torch.full((rows, length), -1)
    token_indices, positions, groups = [], [], []
    size = 0
    for members, prefix in grouped(texts):
        first, start = members[0], size
        shared = torch.arange(start, start + prefix)
        token_indices.append(first * length + columns[first][:prefix])
        positions.append(torch.arange(prefix))
        size += prefix
        branches = []
        for row in members:
            place[row, columns[row][:prefix]] = shared
            rest = columns[row][prefix:]
            place[row, rest] = torch.arange(size, size + len(rest))
            token_indices.append(row * length + rest)
            positions.append(torch.arange(prefix, prefix + len(rest)))
            size += len(rest)
            branches.append(len(rest))
        groups.append(Group(start, prefix, tuple(branches)))
    wanted = labels.cpu()[:, 1:] != -100
    device = input_ids.device
    return PackedBatch(
        torch.cat(token_indices).to(device),
        torch.cat(positions).to(device),
        place[:, :-1][wanted].to(device),
        wanted.flatten().nonzero().flatten().to(device),
        tuple(groups),
        place.to(device),
        Counter() if calls is None else calls,
    )


def grouped(texts: list[torch.Tensor]) -> list[tuple[list[int], int]]:
    """(rows, tokens that all of them begin with), each row in one group."""
    left = list(range(len(texts)))
    found = []
    while left:
        first = left.pop(0)
        shared = {row: common(texts[first], texts[row]) for row in left}
        most = max(shared.values(), default=0)
        members = [row for row in left if most and shared[row] >= _ALIKE * most]
        left = [row for row in left if row not in members]
        prefix = min((shared[row] for row in members), default=0)
        found.append(([first, *members], prefix))
    return found


def common(a: torch.Tensor, b: torch.Tensor) -> int:
    """Tokens that both begin with."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).nonzero()
    return int(differs[0]) if len(differs) else length
