"""The margin explodes."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.logp_drift import gap
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Margin(HealthRule):
    """The margin is far beyond what published runs reach: beta too low, or steps too large.

    Two scales, for rewards are beta times nats. Beyond a reward margin of 20 nothing is left to
    learn of a pair, since a logistic loss weighs it with exp(-20); published runs end at 0.6
    to 4.1 (beta 0.01 to 0.5), and huggingface/trl issue 1236, with a learning rate of 1e-4, had
    12. At a small beta that says little, so the margin is taken in nats a token as well: published
    runs end below 1, and ipo at beta 0.1, whose text falls apart, is pulled to 5. Proposals.
    """

    name: ClassVar[str] = "margin"
    reads: ClassVar[tuple[str, ...]] = ("rewards/margins",)
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    rewards: Positive = 20.0
    """Reward margin; losses that do not look at it (ipo, orpo, simpo, ...) are not measured so."""
    nats_a_token: Positive = 4.0
    """Margin of the log-probabilities a token, whatever beta is."""
    steps: Count = 10
    """Optimizer steps that are averaged."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        margin = history.recent("rewards/margins", self.steps)
        if margin is None:
            return None
        nats = gap(history, facts, self.steps)
        if facts.method.loss_saturates and margin.mean > self.rewards:
            seen = f"reward margin {margin.mean:.1f}"
        elif nats is not None and nats > self.nats_a_token:
            seen = f"margin of {nats:.1f} nats a token (reward margin {margin.mean:.3g})"
        else:
            return None
        which = facts.method.strength_key
        off = "high" if facts.method.stronger == "higher" else "low"
        return self.advice(
            history,
            seen=seen,
            means=f"it explodes; mostly {which} is too {off} or the learning rate too high, and "
            "text falls apart",
            change=f"{facts.method.weaken}, or lower training.learning_rate",
        )
