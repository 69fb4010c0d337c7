"""Bootstrap intervals over prompts: rows with the same prompt are drawn together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
_ROUNDING = 1e-5
"""Differences of float32 sums that are equal but for the order of additions."""
_CELLS = 4_000_000
"""Weights in memory at once."""


class Statistic(Protocol):
    """A function of weighted rows."""

    @property
    def is_share(self) -> bool:
        """True if its values are between 0 and 1, both included."""

    def on(self, rows: Ints) -> Self:
        """Return the statistic of some of the rows."""

    def __call__(self, weights: Floats) -> Floats:
        """Return a value per resample; NaN without rows. weights: (resamples, rows)."""


@dataclass(frozen=True)
class Mean:
    """The weighted sum of `values` over that of `counts`."""

    values: Floats
    counts: Floats
    is_share: bool = False

    def on(self, rows: Ints) -> Mean:
        return Mean(self.values[rows], self.counts[rows], self.is_share)

    def __call__(self, weights: Floats) -> Floats:
        return divide(weights @ self.values, weights @ self.counts)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-probability of a token."""

    logps: Mean
    is_share: bool = False

    def on(self, rows: Ints) -> Perplexity:
        return Perplexity(self.logps.on(rows))

    def __call__(self, weights: Floats) -> Floats:
        with np.errstate(over="ignore"):
            perplexity: Floats = np.exp(-self.logps(weights))
        return perplexity


@dataclass(frozen=True)
class Gap:
    """The difference between two means."""

    first: Mean
    second: Mean
    is_share: bool = False

    def on(self, rows: Ints) -> Gap:
        return Gap(self.first.on(rows), self.second.on(rows))

    def __call__(self, weights: Floats) -> Floats:
        gap: Floats = self.first(weights) - self.second(weights)
        return gap


@dataclass(frozen=True)
class Ordered:
    """The share of pairs of a desirable and an undesirable row that the scores put in order.

    A tie counts one half. This is the area under the ROC curve.
    """

    scores: Floats
    labels: npt.NDArray[np.bool_]
    is_share: bool = True

    def on(self, rows: Ints) -> Ordered:
        return Ordered(self.scores[rows], self.labels[rows])

    def __call__(self, weights: Floats) -> Floats:
        _, level = np.unique(self.scores, return_inverse=True)
        order = np.argsort(level, kind="stable")
        starts = np.flatnonzero(np.diff(level[order], prepend=-1))
        good, bad = (
            np.add.reduceat(np.where(mask, weights, 0.0)[:, order], starts, axis=1)
            if len(order)
            else np.zeros((len(weights), 0))
            for mask in (self.labels, ~self.labels)
        )
        below = bad.cumsum(1) - bad / 2
        return divide((good * below).sum(1), good.sum(1) * bad.sum(1))


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None where there are too few prompts, or no rows."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def contains_zero(self) -> bool:
        """True if the interval contains 0 or what rounding makes of it, and if there is none."""
        if self.low is None or self.high is None:
            return True
        return self.low <= _ROUNDING and self.high >= -_ROUNDING


class Bootstrap:
    """Resamples of prompts, the same for every statistic: values of two models are paired."""

    def __init__(self, prompts: Ints, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        """prompts: a key per row, equal for equal prompts."""
        keys, self._prompt_of_row = np.unique(prompts, return_inverse=True)
        self._count, self._resamples, self._seed = len(keys), resamples, seed

    def prompts(self, rows: Ints) -> int:
        """Return the number of prompts of some rows."""
        return len(np.unique(self._prompt_of_row[rows]))

    def values(self, statistics: Sequence[Statistic], groups: Sequence[Ints]) -> list[Floats]:
        """Return (statistics, resamples) of each group of rows, all from the same resamples."""
        parts: list[list[Floats]] = [[] for _ in groups]
        chosen = [[statistic.on(rows) for statistic in statistics] for rows in groups]
        for weights in self._weights():
            for part, rows, some in zip(parts, groups, chosen, strict=True):
                drawn = weights[:, rows]
                part.append(np.stack([statistic(drawn) for statistic in some]))
        return [np.concatenate(part, axis=1) for part in parts]

    def estimate(self, statistic: Statistic, values: Floats, rows: Ints) -> Estimate:
        """Return the statistic of some rows with the interval that its resamples give."""
        value = float(statistic.on(rows)(np.ones((1, len(rows))))[0])
        prompts = self.prompts(rows)
        if statistic.is_share and prompts > 1 and value in (0.0, 1.0):
            # No resample differs. This is the exact interval of a binomial share.
            beyond = ((1 - LEVEL) / 2) ** (1 / prompts)
            low, high = (beyond, 1.0) if value else (0.0, 1 - beyond)
            return Estimate(value, low, high)
        return interval(value, values, prompts)

    def _weights(self) -> Iterator[Floats]:
        """Yield how often each row is drawn, for some resamples at a time."""
        draw = np.random.default_rng(self._seed)
        some = max(1, _CELLS // max(len(self._prompt_of_row), self._count))
        for start in range(0, self._resamples, some):
            count = min(some, self._resamples - start)
            drawn = draw.integers(0, self._count, (count, self._count))
            drawn += np.arange(count)[:, None] * self._count
            counts = np.bincount(drawn.ravel(), minlength=count * self._count)
            weights = counts.reshape(count, self._count)[:, self._prompt_of_row]
            yield weights.astype(np.float64)


def interval(value: float, resampled: Floats, prompts: int) -> Estimate:
    """Return a value with the percentiles of its resamples, without those that have no rows."""
    valid = resampled[~np.isnan(resampled)]
    if np.isnan(value):
        return Estimate(None, None, None)
    if prompts < 2 or len(valid) < len(resampled) / 2:
        return Estimate(value, None, None)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(valid, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def divide(values: Floats, counts: Floats) -> Floats:
    """Divide; NaN where the count is 0."""
    missing = np.full(len(counts), np.nan)
    quotient: Floats = np.divide(values, counts, out=missing, where=counts > 0)
    return quotient
