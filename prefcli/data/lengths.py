"""Lengths of the rows of a split, in tokens, before the cut at max_length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_UNCUT_SHARE = 0.99
_BINS_WITHIN = 8
_BINS_BEYOND = 4


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt, of each completion, and of `row`: prompt and longer completion."""

    tokens: Mapping[str, Ints]
    max_length: int
    margin: int
    """Tokens the trainer may add to a row."""

    @property
    def room(self) -> int:
        """Tokens of the row that fit into max_length."""
        return self.max_length - self.margin

    @property
    def enough(self) -> int:
        """The smallest max_length that cuts at most 1 % of the rows."""
        return _quantile(self.tokens["row"], _UNCUT_SHARE) + self.margin

    @property
    def longest(self) -> int:
        """Tokens of the longest row after the cut."""
        return min(int(self.tokens["row"].max()), self.room) + self.margin

    def packed(self, batch: int, epochs: int) -> int:
        """Estimate the tokens of the largest packed batch of `batch` rows in `epochs` epochs.

        It is an estimate, since training shuffles the rows differently.
        """
        row_tokens = self._packed_rows()
        count, rng = len(row_tokens) // batch, np.random.default_rng(0)
        if not count:
            return int(row_tokens.sum())
        shuffled = (rng.permutation(row_tokens)[: count * batch] for _ in range(epochs))
        return max(int(rows.reshape(count, batch).sum(1).max()) for rows in shuffled)

    @property
    def longest_packed(self) -> int:
        """Tokens of the longest row in a packed batch."""
        return int(self._packed_rows().max())

    def _packed_rows(self) -> Ints:
        """Count the tokens of each row in a packed batch: no padding, and the prompt once."""
        # Whole texts have none.
        prompts = np.minimum(self.tokens.get("prompt", np.zeros(1, np.int64)), self.room)
        row_tokens = prompts + self.margin
        for name, completions in self.tokens.items():
            if name not in ("prompt", "row"):
                row_tokens = row_tokens + np.minimum(completions, self.room - prompts)
        return row_tokens

    def line(self) -> str:
        """Describe the quantiles on one line."""
        parts = [
            f"{name} {'/'.join(str(_quantile(tokens, q)) for q in _QUANTILES.values())}"
            for name, tokens in self.tokens.items()
        ]
        return (
            f"tokens, {'/'.join(_QUANTILES)}: {', '.join(parts)}; max_length {self.enough} cuts at "
            f"most 1 % of the rows"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return quantiles and a histogram; its `ends` are the last length of each bin."""
        ends = _ends(int(self.tokens["row"].max()), self.room)
        return {
            "quantiles": {
                name: {key: _quantile(tokens, q) for key, q in _QUANTILES.items()}
                for name, tokens in self.tokens.items()
            },
            "max_length": self.max_length,
            "max_length_for_99_percent": self.enough,
            "histogram": {
                "room": self.room,
                "ends": ends,
                "rows": {
                    name: np.bincount(np.searchsorted(ends, tokens), minlength=len(ends)).tolist()
                    for name, tokens in self.tokens.items()
                },
            },
        }


def _quantile(values: Ints, q: float) -> int:
    """Return the smallest value that a share q of the values does not exceed (nearest rank)."""
    ordered = np.sort(values)
    # In floating point, 0.99 * 100 is slightly above 99.
    return int(ordered[max(math.ceil(q * len(ordered) - 1e-9), 1) - 1])


def _ends(longest: int, room: int) -> list[int]:
    """Return the last lengths of the bins; `room` is one of them if rows exceed it."""
    if longest <= room:
        step = math.ceil(max(longest, 1) / (_BINS_WITHIN + _BINS_BEYOND))
        return [*range(step, longest, step), longest]
    fitting = {round(room * i / _BINS_WITHIN) for i in range(1, _BINS_WITHIN + 1)}
    step = math.ceil(room / _BINS_WITHIN)
    beyond = [room + step * i for i in range(1, _BINS_BEYOND)]
    return [*sorted(fitting), *(end for end in beyond if end < longest), longest]
