"""How much the best of n responses gains, and how rewards are distributed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefcli.evaluation.bootstrap import Bootstrap, Floats, Ints, Mean

_BINS = 30
_MOST = 64
"""Responses to a prompt beyond which the curve ends."""


@dataclass(frozen=True)
class BestOf:
    """The mean reward of the best of n responses to a prompt, with its 95 % interval."""

    n: int
    reward: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Distribution:
    """Counts of rewards in bins of equal width."""

    edges: list[float]
    counts: dict[str, list[int]]
    """By the name of what is counted."""


def best_of(rewards: Floats, groups: Ints) -> list[BestOf]:
    """Return the curve up to the number of responses that half of the prompts have.

    The mean is over all choices of n of a prompt's responses. Prompts with fewer than the largest n
    are not in the curve. Empty if most prompts have one response.
    """
    valid = ~np.isnan(rewards)
    _, group, counts = np.unique(groups[valid], return_inverse=True, return_counts=True)
    if not len(counts):
        return []
    most = min(int(np.median(counts)), _MOST)
    if most < 2:
        return []
    order = np.lexsort((rewards[valid], group))
    parts = np.split(rewards[valid][order], np.cumsum(counts)[:-1])
    weights = {size: _weights(size, most) for size in {len(p) for p in parts} if size >= most}
    means = np.stack([part @ weights[len(part)] for part in parts if len(part) >= most])
    rows = np.arange(len(means))
    bootstrap, ones = Bootstrap(rows), np.ones(len(means))
    statistics = [Mean(means[:, at], ones) for at in range(most)]
    resampled = bootstrap.values(statistics, [rows])[0]
    estimates = [
        bootstrap.estimate(statistic, values, rows)
        for statistic, values in zip(statistics, resampled, strict=True)
    ]
    return [
        BestOf(n, estimate.value, estimate.low, estimate.high)
        for n, estimate in enumerate(estimates, 1)
        if estimate.value is not None
    ]


def _weights(size: int, most: int) -> Floats:
    """Return (size, most): the probability that the i-th lowest is the best of n drawn ones."""
    return np.array(
        [
            [math.comb(i, n - 1) / math.comb(size, n) for n in range(1, most + 1)]
            for i in range(size)
        ]
    )


def distribution(
    rewards: Floats, parts: Mapping[str, npt.NDArray[np.bool_]]
) -> Distribution | None:
    """Count the rewards of each part in the same bins; None without rewards."""
    valid = rewards[~np.isnan(rewards)]
    if not len(valid):
        return None
    edges = np.histogram_bin_edges(valid, _BINS)
    counts = {
        name: np.histogram(rewards[mask & ~np.isnan(rewards)], edges)[0].tolist()
        for name, mask in parts.items()
    }
    return Distribution(edges.tolist(), counts)
