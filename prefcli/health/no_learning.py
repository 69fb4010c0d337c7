"""A run that does not learn."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_NATS = 0.1


class NoLearning(HealthRule):
    """The margin is still 0 after warm-up, or the eval loss is still that of the start.

    huggingface/trl issues 1962 and 2553. The qlora reproductions of zephyr-7b-dpo (beta 0.01) have
    margins of 0.011 to 0.026 by step 100. Methods with a reference are judged by the margin, the
    others by the eval loss, since their margins can start anywhere.
    """

    name: ClassVar[str] = "no_learning"

    margin: Positive = 1e-3
    """A smaller reward margin counts as 0; with a beta below 0.01, 0.1 nats."""
    loss: Positive = 1e-3
    """Share of the first eval loss by which it must have changed."""
    steps: Count = 30
    """Optimizer steps to average, and to wait after warm-up (and at least a fifth of the run)."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        if history.step < run.earliest(self.steps):
            return None
        if run.starts_at_reference:
            return self._by_margin(history, run)
        return self._by_loss(history, run)

    def _by_margin(self, history: History, run: RunContext) -> Advice | None:
        margin = history.recent("rewards/margins", self.steps, after=run.warmup)
        threshold = min(self.margin, _NATS * run.method.reward_scale)
        if margin is None or abs(margin.mean) >= threshold:
            return None
        off = "low" if run.method.stronger == "higher" else "high"
        return self.advice(
            history,
            seen=f"reward margin {margin.mean:.1g}, the mean of {margin.steps} steps after warm-up",
            means=f"the policy is not learning; {run.method.strength_key} is too {off}, the "
            "learning rate too small, the labels are random, or no weight is trained",
            change=f"raise training.learning_rate, {run.method.strengthen}, or look at the rows "
            "with `prefcli data`",
        )

    def _by_loss(self, history: History, run: RunContext) -> Advice | None:
        first, last = history.first("eval_loss"), history.last("eval_loss")
        if first is None or last is None or first.step != 0:
            return None
        if last.step < run.earliest(self.steps):
            return None
        if abs(last.value - first.value) >= self.loss * abs(first.value):
            return None
        return self.advice(
            history,
            seen=f"eval loss {last.value:.4f}, was {first.value:.4f} before the first step",
            means="the policy is not learning; the learning rate is too small, or no weight is "
            "trained",
            change="raise training.learning_rate",
        )
