"""The packed row of a batch: no padding, and a prefix that rows share only once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]

_MIN_SHARED = 0.9
"""A row joins a group if it has this share of the longest common prefix."""


@dataclass(frozen=True)
class Group:
    """Rows of the batch with a common prefix. All numbers count tokens of the packed row."""

    start: int
    """Position of its first token."""
    prefix: int
    """Length of the common prefix."""
    branches: tuple[int, ...]
    """Number of tokens of each row after the prefix."""

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
    """(runs + 1,) in int32: 0, then the end of each run in the packed row."""
    key_ends: torch.Tensor
    """(runs + 1,) in int32: 0, then the end of each run in `keys`."""
    keys: torch.Tensor
    """Packed tokens that each run attends to; a shared prefix is repeated for each of its runs."""
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
    """(rows, length) packed token of each token of the batch; -1 for padding."""
    calls: Counter[str] = field(default_factory=Counter, repr=False, compare=False)
    """Calls of each attention function in the same run."""
    _masks: dict[tuple[int, int, int | None, torch.dtype], torch.Tensor] = field(
        default_factory=dict, repr=False
    )

    @property
    def size(self) -> int:
        return len(self.token_indices)

    def to(self, device: torch.device, non_blocking: bool = True) -> PackedBatch:
        """Return the map on a device, in one copy that the host does not wait for."""
        if self.token_indices.device == device:
            return self
        names = ("token_indices", "positions", "sources", "scored", "place")
        tensors = [getattr(self, name) for name in names]
        arrays = [tensor.flatten().cpu().numpy() for tensor in tensors]
        moved = zip(names, tensors, _to_device(arrays, device), strict=True)
        views: dict[str, Any] = {name: flat.view(tensor.shape) for name, tensor, flat in moved}
        return dataclasses.replace(self, **views, _masks={})

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest row."""
        return max(g.prefix + max(g.branches, default=0) for g in self.groups)

    def reached(self, window: int | None) -> int | None:
        """Return the window if a row is longer than it."""
        return reached(window, self.longest)

    @cached_property
    def spans(self) -> Spans:
        """The runs of queries and keys: a group's prefix, then each of its branches."""
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
        """Return the mask, (queries, keys), to add to the scores of the last `queries` of `keys`
        tokens."""
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
    multiple: int = 1,
) -> PackedBatch:
    """Pack a batch of three (rows, length) tensors; -100 marks tokens without a label.

    calls: counter of the run. multiple: fill the packed row up to a multiple of this number with
    copies of one token, which no other token attends to.

    The hidden state before a label scores it. For the first token of a branch that is the last
    state of the shared prefix.
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
    if missing := -size % multiple:
        token_indices.append(np.zeros(missing, np.int64))
        positions.append(np.zeros(missing, np.int64))
        groups.append(Group(size, missing, ()))
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
    """Return (ids, which are not padding, which have a label), waiting for the device once."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ids, real, targets = torch.stack([input_ids, mask.to(input_ids), labels]).cpu().numpy()
    return ids, real != 0, targets != -100


def _to_device(arrays: list[Ints], device: torch.device) -> list[torch.Tensor]:
    """Copy arrays to a device at once, without waiting for the copy."""
    together = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        together = together.pin_memory().to(device, non_blocking=True)
    return list(torch.split(together, [len(array) for array in arrays]))


def _grouped(texts: list[Ints]) -> list[tuple[list[int], int]]:
    """Divide rows into groups: (row numbers, length of their common prefix)."""
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
