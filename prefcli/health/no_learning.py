"""Nothing is learnt."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_NATS = 0.1


class NoLearning(HealthRule):
    """After warm-up the run is still where it began: the margin at 0, or the eval loss unmoved.

    huggingface/trl issues 1962 and 2553. The qlora reproductions of zephyr-7b-dpo (beta 0.01) have
    margins of 0.011 to 0.026 by step 100. Methods that begin at a reference are judged by the
    margin, the others by the eval loss: their margins begin anywhere.
    """

    name: ClassVar[str] = "no_learning"

    margin: Positive = 1e-3
    """Reward margin that is as good as none; below beta 0.01, 0.1 nats."""
    loss: Positive = 1e-3
    """Share of its start by which the eval loss must have moved."""
    steps: Count = 30
    """Optimizer steps to wait after warm-up, and to average; never less than a fifth of the run."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        if history.step < facts.wait(self.steps):
            return None
        if facts.starts_at_reference:
            return self._by_margin(history, facts)
        return self._by_loss(history, facts)

    def _by_margin(self, history: History, facts: RunContext) -> Advice | None:
        margin = history.recent("rewards/margins", self.steps, after=facts.warmup)
        nothing = min(self.margin, _NATS * facts.method.reward_scale)
        if margin is None or abs(margin.mean) >= nothing:
            return None
        return self.advice(
            history,
            seen=f"reward margin {margin.mean:.1g}, the mean of {margin.steps} steps after warm-up",
            means="nothing is learnt; beta is too high, the learning rate too small, the labels "
            "are random, or no weight is trained",
            change=f"raise training.learning_rate, {facts.method.strengthen}, or look at the rows "
            "with `prefcli data`",
        )

    def _by_loss(self, history: History, facts: RunContext) -> Advice | None:
        first, last = history.first("eval_loss"), history.last("eval_loss")
        if first is None or last is None or first.step != 0:
            return None
        if last.step < facts.wait(self.steps):
            return None
        if abs(last.value - first.value) >= self.loss * abs(first.value):
            return None
        return self.advice(
            history,
            seen=f"eval loss {last.value:.4f}, and {first.value:.4f} before the first step",
            means="nothing is learnt; the learning rate is too small, or no weight is trained",
            change="raise training.learning_rate",
        )
