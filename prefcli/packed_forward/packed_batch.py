"""A padded batch as one row without padding, in which rows share a common prefix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]

_MIN_SHARED = 0.9
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


def reached(window: int | None, longest: int) -> int | None:
    """Return the window if a row of `longest` tokens is longer than it."""
    return window if window and window < longest else None


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
        return reached(window, self.longest)

    @cached_property
    def spans(self) -> Spans:
        queries, keys, seen = [0], [0], []
        for group in self.groups:
            shared = np.arange(group.start, group.start + group.prefix)
            at = group.start
            for own, before in (
                (group.prefix, shared[:0]),
                *((branch, shared) for branch in group.branches),
            ):
                if own:
                    queries.append(own)
                    keys.append(len(before) + own)
                    seen += [before, np.arange(at, at + own)]
                at += own
        arrays = [np.cumsum(queries), np.cumsum(keys), np.concatenate(seen)]
        query_ends, key_ends, indices = _to_device(arrays, self.token_indices.device)
        return Spans(query_ends.int(), key_ends.int(), indices, max(queries), max(keys))

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
    ids, real, labelled = _on_host(input_ids, attention_mask, labels)
    columns = [np.flatnonzero(row) for row in real]
    place = np.full((rows, length), -1)
    token_indices, positions, groups = [], [], []
    size = 0
    for members, prefix in _grouped([row[at] for row, at in zip(ids, columns, strict=True)]):
        first, start = members[0], size
        token_indices.append(first * length + columns[first][:prefix])
        positions.append(np.arange(prefix))
        size += prefix
        branches = []
        for row in members:
            place[row, columns[row][:prefix]] = np.arange(start, start + prefix)
            rest = columns[row][prefix:]
            place[row, rest] = np.arange(size, size + len(rest))
            token_indices.append(row * length + rest)
            positions.append(np.arange(prefix, prefix + len(rest)))
            size += len(rest)
            branches.append(len(rest))
        groups.append(Group(start, prefix, tuple(branches)))
    scored = labelled[:, 1:]
    arrays = [
        np.concatenate(token_indices),
        np.concatenate(positions),
        place[:, :-1][scored],
        np.flatnonzero(scored),
        place.ravel(),
    ]
    token_at, position, sources, targets, places = _to_device(arrays, input_ids.device)
    return PackedBatch(
        token_at,
        position,
        sources,
        targets,
        tuple(groups),
        places.view(rows, length),
        Counter() if calls is None else calls,
    )


def _on_host(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
) -> tuple[Ints, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(ids, which of them are there, which have a label), with one wait for the device."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ids, real, targets = torch.stack([input_ids, mask.to(input_ids), labels]).cpu().numpy()
    return ids, real != 0, targets != -100


def _to_device(arrays: list[Ints], device: torch.device) -> list[torch.Tensor]:
    """In one copy that the host does not wait for."""
    together = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        together = together.pin_memory().to(device, non_blocking=True)
    return list(torch.split(together, [len(array) for array in arrays]))


def _grouped(texts: list[Ints]) -> list[tuple[list[int], int]]:
    """(rows, tokens that all of them begin with), each row in one group."""
    lengths = np.array([len(text) for text in texts])
    padded = np.full((len(texts), max(lengths, default=0) + 1), -1)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    left = list(range(len(texts)))
    groups_of_rows = []
    while left:
        first, left = left[0], left[1:]
        # The last column differs from itself, so that each row differs somewhere.
        differs = padded[left] != padded[first]
        differs[:, -1] = True
        shared = np.minimum(differs.argmax(1), np.minimum(lengths[left], lengths[first]))
        most = int(shared.max(initial=0))
        joins = shared >= _MIN_SHARED * most if most else np.zeros(len(left), bool)
        members = [row for row, join in zip(left, joins, strict=True) if join]
        prefix = int(shared[joins].min(initial=most)) if members else 0
        left = [row for row, join in zip(left, joins, strict=True) if not join]
        groups_of_rows.append(([first, *members], prefix))
    return groups_of_rows
