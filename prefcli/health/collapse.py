"""The policy leaves language behind."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Positive
from prefcli.health.base import Advice, HealthRule, Loudness
from prefcli.health.logp_drift import Side, drift
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

FLOOR = 50.0
"""Nats per token, a rule of practice in the DPO literature."""


class Collapse(HealthRule):
    """Rejected responses below -50 nats a token; or either side far below where it started.

    The first is distribution collapse by the rule of practice, and stops a run; what falls off
    a cliff warns. Published runs that are displaced and fine stay far from both: zephyr-7b-dpo
    loses about 0.8 nats a token of chosen responses (-283 to -511 over some 250 to 300 tokens).
    IPO at beta 0.1 falls off: its text becomes bytes while accuracy still reads 90 %.
    """

    name: ClassVar[str] = "collapse"
    reads: ClassVar[tuple[str, ...]] = ("logps/rejected",)

    level: Loudness = "stop"
    floor: Positive = FLOOR
    """Nats a token: rejected responses that are less likely than exp(-floor) a token are lost."""
    chosen_fall: Positive = 3.0
    """Nats a token that chosen responses may lose since the start; at 3 their perplexity is 20
    times what it was. No figure is published; a proposal."""
    rejected_fall: Positive = 10.0
    """The same of rejected responses, which are meant to fall. A proposal."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        return self._floor(history, facts) or self._cliff(history, facts)

    def _floor(self, history: History, facts: RunContext) -> Advice | None:
        for key in ("logps/rejected_per_token", "eval_logps/rejected_per_token"):
            last = history.last(key)
            if last is not None and last.value < -self.floor:
                return self.advice(
                    history,
                    seen=f"rejected responses at {last.value:.1f} nats a token",
                    means="the distribution has collapsed, and what is sampled is no language",
                    change=f"{facts.method.weaken}, lower training.learning_rate, or {facts.hold}",
                )
        return None

    def _cliff(self, history: History, facts: RunContext) -> Advice | None:
        falls: dict[Side, float] = {"chosen": self.chosen_fall, "rejected": self.rejected_fall}
        for side, allowed in falls.items():
            moved = drift(history, facts, side)
            if moved is not None and moved.nats < -allowed:
                return self.advice(
                    history,
                    seen=f"{side} responses lost {-moved.nats:.1f} nats a token ({moved.seen})",
                    means="the policy falls off a cliff; text is coming apart, whatever the "
                    "accuracy says",
                    change=f"{facts.method.weaken}, lower training.learning_rate, or {facts.hold}",
                    at_most="warn",
                )
        return None
