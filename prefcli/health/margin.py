"""A margin that explodes."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.logp_drift import margin_per_token
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Margin(HealthRule):
    """The margin is far beyond that of published runs: beta is too low or the steps too large.

    It is measured on two scales, since rewards are beta times nats. Beyond a reward margin of 20
    a pair has nothing left to teach: a logistic loss weighs it with exp(-20). Published runs end
    at 0.6 to 4.1 (beta 0.01 to 0.5); huggingface/trl issue 1236, with a learning rate of 1e-4,
    had 12. At a small beta that says little, so the margin is also measured in nats per token:
    published runs end below 1, and ipo at beta 0.1, whose text degenerates, aims at 5. Proposals.
    """

    name: ClassVar[str] = "margin"
    reads: ClassVar[tuple[str, ...]] = ("rewards/margins",)
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    rewards: Positive = 20.0
    """Reward margin, for losses that saturate; ipo, orpo, simpo and others do not."""
    nats_per_token: Positive = 4.0
    """Margin of the log-probabilities per token, whatever beta is."""
    steps: Count = 10
    """Optimizer steps that are averaged."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        margin = history.recent("rewards/margins", self.steps)
        if margin is None:
            return None
        nats = margin_per_token(history, run, self.steps)
        if run.method.loss_saturates and margin.mean > self.rewards:
            seen = f"reward margin {margin.mean:.1f}"
        elif nats is not None and nats > self.nats_per_token:
            seen = f"margin of {nats:.1f} nats per token (reward margin {margin.mean:.3g})"
        else:
            return None
        off = "high" if run.method.stronger == "higher" else "low"
        strength = run.method.strength_key
        return self.advice(
            history,
            seen=seen,
            means=f"it explodes; usually {strength} is too {off} or the learning rate too high, "
            "and samples degenerate"
            if strength is not None
            else "it explodes; usually the learning rate is too high, or there are too many epochs",
            change=f"{run.method.weaken}, or lower training.learning_rate",
        )
