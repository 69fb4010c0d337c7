"""Labels that cannot be learned."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_SIGMAS = 3.0
_CHECK_LABELS = "look at pairs with `prefcli data`, and at the columns of chosen and rejected"


class Accuracy(HealthRule):
    """The reward accuracy is at chance, or below it, long after warm-up.

    huggingface/trl issues 2553 and 2371. An accuracy over n pairs has a standard error of
    sqrt(p (1 - p) / n), and counts as low three of them below the threshold. Published runs end at
    0.61 to 0.79, and the qlora reproductions of zephyr-7b-dpo have 0.62 to 0.66 by step 100.
    Swapped labels alone are as easy to learn as correct ones; the rule detects rows that
    contradict each other, and data.train that contradicts data.eval. Methods without a reference
    can start at any accuracy and are not judged.
    """

    name: ClassVar[str] = "accuracy"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    chance: Fraction = 0.55
    """An accuracy that is certainly lower counts as chance. A proposal."""
    pairs: Count = 1000
    """Training pairs that are averaged, all of them after warm-up."""
    steps: Count = 30
    """Optimizer steps to wait after warm-up, and at least a fifth of the run."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        if not run.starts_at_reference:
            return None
        return self._eval(history, run) or self._train(history, run)

    def _train(self, history: History, run: RunContext) -> Advice | None:
        if history.step < run.earliest(self.steps):
            return None
        steps = max(math.ceil(self.pairs / run.batch), self.steps)
        accuracy = history.recent("rewards/accuracies", steps, after=run.warmup)
        margin = history.recent("rewards/margins", steps, after=run.warmup)
        if accuracy is None or margin is None:
            return None
        pairs = accuracy.steps * run.batch
        seen = f"accuracy {accuracy.mean:.2f} over the last {pairs} training pairs"
        bound = _upper_bound(accuracy.mean, pairs)
        if bound < 0.5 and margin.mean < 0:
            return self.advice(
                history,
                seen=seen,
                means="the policy moves against its own labels; the steps are too large, or rows "
                "contradict each other",
                change=f"lower training.learning_rate; {_CHECK_LABELS}",
            )
        if bound < self.chance:
            return self.advice(
                history,
                seen=seen,
                means="no better than chance; the labels are random, or learning is too slow",
                change=f"{_CHECK_LABELS}; if they are right, raise training.learning_rate",
            )
        return None

    def _eval(self, history: History, run: RunContext) -> Advice | None:
        last = history.last("eval_rewards/accuracies")
        margin = history.last("eval_rewards/margins")
        if last is None or margin is None or last.step < run.earliest(self.steps):
            return None
        seen = f"accuracy {last.value:.2f} on the {run.eval_rows} pairs of data.eval"
        bound = _upper_bound(last.value, run.eval_rows)
        if bound < 0.5 and margin.value < 0:
            return self.advice(
                history,
                seen=seen,
                means="data.eval prefers the opposite of data.train; one of them has chosen and "
                "rejected swapped",
                change=_CHECK_LABELS,
            )
        if bound < self.chance:
            return self.advice(
                history,
                seen=seen,
                means="no better than chance; the labels are random, or the policy does not "
                "generalize",
                change=f"{_CHECK_LABELS}; if they are right, train on more pairs",
            )
        return None


def _upper_bound(mean: float, pairs: int) -> float:
    """Return the highest accuracy that the measured one is compatible with."""
    share = min(max(mean, 0.0), 1.0)
    # Laplace smoothing: with 0 hits the standard error would be 0.
    share = (share * pairs + 1) / (pairs + 2)
    return share + _SIGMAS * math.sqrt(share * (1 - share) / pairs) if pairs else 1.0
