"""Completions that get longer because the judge scores long ones higher."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Fraction, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10


class LengthHacking(HealthRule):
    """Completions have become much longer, and longer ones get higher scores.

    A reward model often prefers length, and RLHF then teaches little else (Singhal et al. 2023,
    arXiv:2310.03716). Both thresholds are proposals.
    """

    name: ClassVar[str] = "length_hacking"
    of_sampled_completions: ClassVar[bool] = True

    growth: Positive = 1.5
    """The mean length must be this many times that of the first ten steps."""
    correlation: Fraction = 0.4
    """Correlation of score and length within a step, as a mean of ten steps."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        windows = history.from_opening("completions/mean_length", _STEPS, _STEPS)
        correlation = history.recent("reward_length_correlation", _STEPS)
        if windows is None or correlation is None:
            return None
        first, lengths = windows
        grown = lengths.mean / max(first.mean, 1.0)
        if grown < self.growth or correlation.mean < self.correlation:
            return None
        return self.advice(
            history,
            seen=f"completions of {lengths.mean:.0f} tokens, {first.mean:.0f} at the start; score "
            f"and length correlate by {correlation.mean:.2f}",
            means="the policy learns that the judge prefers length",
            change="score something else than length, lower rloo.max_completion_length, or "
            f"{run.method.weaken}",
        )
