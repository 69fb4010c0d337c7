"""The share of swapped labels among pairs, estimated from margins of a model that has not seen
them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prefcli.evaluation.bootstrap import Estimate, Floats, Ints

_BINS = 50
"""Rows of similar |margin| share a term of the likelihood."""
_SLOPES = np.geomspace(0.02, 50.0, 60)
"""Slopes of the logistic curve, times the median of |margin|."""
_SHARES = np.linspace(0.0, 1.0, 401)
_LEAST = 1e-9
"""Bound of a probability in the likelihood."""
_CHI_SQUARED = 3.841
"""Twice the distance from the largest log-likelihood in 95 % of samples, for one parameter."""
_WIDEST = 0.3
"""Length of an interval beyond which the share counts as not identified."""
_DECILES = 10


class NoiseFit(NamedTuple):
    """The maximum of the likelihood."""

    share: float
    """Share of swapped labels."""
    slope: float
    """The model is right about a pair with probability sigmoid(slope * |margin|)."""

    def right(self, margins: Floats) -> Floats:
        """Return the probability that the first response is the better one, whatever the label."""
        return _sigmoid(self.slope * margins)

    def agree(self, size: Floats) -> Floats:
        """Return the probability that model and label agree. size: |margin|."""
        return self.share + (1 - 2 * self.share) * self.right(size)

    def swapped(self, margins: Floats) -> Floats:
        """Return the probability that the label of each pair is swapped."""
        right = self.right(margins)
        wrong = self.share * (1 - right)
        probability: Floats = wrong / (wrong + (1 - self.share) * right)
        return probability


class Agreement(NamedTuple):
    """How often model and label agree about pairs of similar |margin|."""

    margin: float
    """Mean |margin|."""
    rows: int
    agreement: float
    expected: float
    """By the fit."""


@dataclass(frozen=True)
class LabelNoise:
    """An estimate of the share of swapped labels, and what it says about each pair."""

    margins: Floats
    """Reward of chosen minus that of rejected."""
    share: Estimate
    fit: NoiseFit

    @property
    def is_identified(self) -> bool:
        """False if the margins say little about the share: the model separates pairs too weakly."""
        low, high = self.share.low, self.share.high
        return low is not None and high is not None and high - low <= _WIDEST

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose label the model agrees with."""
        return float(_agrees(self.margins).mean())

    @cached_property
    def swapped(self) -> Floats:
        """Probability that each label is swapped."""
        return self.fit.swapped(self.margins)

    @cached_property
    def right(self) -> Floats:
        """Probability that the chosen response is the better one, by the model alone."""
        return self.fit.right(self.margins)

    def agreements(self) -> list[Agreement]:
        """Compare model and labels in ten parts of the rows, by |margin|."""
        size = np.abs(self.margins)
        parts = np.array_split(np.argsort(size, kind="stable"), _DECILES)
        return [self._agreement(part, size[part]) for part in parts if len(part)]

    def _agreement(self, rows: npt.NDArray[np.int64], size: Floats) -> Agreement:
        means = (float(v.mean()) for v in (_agrees(self.margins[rows]), self.fit.agree(size)))
        return Agreement(float(size.mean()), len(rows), *means)


def estimate_noise(margins: Floats, prompts: Ints) -> LabelNoise:
    """Estimate the share of swapped labels by maximum likelihood.

    Model and label agree about a pair with probability (1 - share) q + share (1 - q), where
    q = sigmoid(slope * |margin|). The interval holds the shares that a likelihood-ratio test does
    not reject. Where the likelihood is flat, the interval is wide; percentiles of a bootstrap are
    narrow there, since most resamples have their maximum at 0.

    prompts: a key per row, equal for equal prompts, whose rows are not independent.
    """
    size = np.abs(margins)
    agrees = _agrees(margins)
    count = min(_BINS, len(margins))
    bins = np.empty(len(margins), np.int64)
    bins[np.argsort(size, kind="stable")] = np.arange(len(margins)) * count // len(margins)
    rows, sums, agreeing = (np.bincount(bins, values) for values in (None, size, agrees))
    centers = sums / rows
    slopes = _SLOPES / (np.median(centers) or 1.0)
    right = _sigmoid(slopes[:, None] * centers)
    agree = _SHARES[:, None, None] + (1 - 2 * _SHARES[:, None, None]) * right
    agree = np.clip(agree, _LEAST, 1 - _LEAST)
    likelihood = np.log(agree) @ agreeing + np.log1p(-agree) @ (rows - agreeing)
    best = np.unravel_index(likelihood.argmax(), likelihood.shape)
    fit = NoiseFit(float(_SHARES[best[0]]), float(slopes[best[1]]))
    below = likelihood.max() - likelihood.max(axis=1)
    accepted = _SHARES[
        2 * below <= _CHI_SQUARED * _design_effect(agrees - fit.agree(size), prompts)
    ]
    low, high = (float(end) for end in (accepted.min(), accepted.max()))
    if len(np.unique(prompts)) < 2:
        return LabelNoise(margins, Estimate(fit.share, None, None), fit)
    return LabelNoise(margins, Estimate(fit.share, low, high), fit)


def _design_effect(residuals: Floats, prompts: Ints) -> float:
    """Return by how much rows of one prompt vary more, together, than independent rows."""
    _, group = np.unique(prompts, return_inverse=True)
    squares = float((residuals**2).sum())
    together = float((np.bincount(group, residuals) ** 2).sum())
    return max(1.0, together / squares) if squares else 1.0


def _agrees(margins: Floats) -> Floats:
    """Return 1 where the margin is positive, and one half where it is 0."""
    agrees: Floats = (np.sign(margins) + 1) / 2
    return agrees


def _sigmoid(values: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
    return probability
