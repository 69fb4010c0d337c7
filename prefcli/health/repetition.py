"""Answers that repeat themselves."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

LOOPING = 0.5
"""Share of repeated 4-grams from which greedy answers count as loops."""


class Repetition(HealthRule):
    """Greedy samples repeat their phrases, much more than before training.

    The measure is seq-rep-4 (Welleck et al. 2020, arXiv:1908.04319) over words: human text has
    about 0.01, greedy answers of small language models 0.4 and more. Both thresholds are proposals.
    """

    name: ClassVar[str] = "repetition"
    needs_language_model: ClassVar[bool] = True
    needs: ClassVar[str | None] = "data.eval"
    defers_to: ClassVar[tuple[str, ...]] = ("finite", "collapse")

    repeated: Fraction = LOOPING
    """A larger share of repeated 4-grams is reported, if it has risen."""
    rise: Fraction = 0.2
    """The share must have risen by this much since the start."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        points = history.points("eval_samples_repeated")
        if len(points) < 2:
            return None
        first, last = points[0], points[-1]
        if last.value <= self.repeated or last.value - first.value < self.rise:
            return None
        return self.advice(
            history,
            seen=f"{last.value:.0%} of the 4-grams in greedy samples repeat earlier ones, "
            f"{first.value:.0%} at step {first.step}",
            means="the policy's answers loop, whatever its accuracy says",
            change=f"read samples.jsonl, lower training.learning_rate, or {run.keep_likelihood}",
        )
