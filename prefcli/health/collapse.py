"""Distribution collapse."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Positive
from prefcli.health.base import Advice, HealthRule, LevelOrOff
from prefcli.health.logp_drift import Side, logp_drift
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

FLOOR = 50.0
"""Nats per token, a rule of practice in the DPO literature."""


class Collapse(HealthRule):
    """Rejected responses below -50 nats per token, or either side far below its start.

    The first stops a run, the second warns. Published runs with likelihood displacement stay far
    from both: zephyr-7b-dpo loses about 0.8 nats per token of chosen responses (-283 to -511 over
    250 to 300 tokens). IPO at beta 0.1 fails: its text degenerates while its accuracy is 90 %.
    """

    name: ClassVar[str] = "collapse"
    reads: ClassVar[tuple[str, ...]] = ("logps/rejected",)

    level: LevelOrOff = "stop"
    floor: Positive = FLOOR
    """Nats per token: log-probabilities of rejected responses below -floor are a collapse."""
    chosen_fall: Positive = 3.0
    """Nats per token that chosen responses may lose since the start; 3 nats are a factor of 20 in
    perplexity. No value is published; a proposal."""
    rejected_fall: Positive = 10.0
    """Nats per token that rejected responses may lose; they are meant to fall. A proposal."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        return self._below_floor(history, run) or self._sharp_drop(history, run)

    def _below_floor(self, history: History, run: RunContext) -> Advice | None:
        for key in ("logps/rejected_per_token", "eval_logps/rejected_per_token"):
            last = history.last(key)
            if last is not None and last.value < -self.floor:
                return self.advice(
                    history,
                    seen=f"rejected responses at {last.value:.1f} nats per token",
                    means="the distribution has collapsed, and samples are degenerate",
                    change=self._cure(run),
                )
        return None

    def _sharp_drop(self, history: History, run: RunContext) -> Advice | None:
        limits: dict[Side, float] = {"chosen": self.chosen_fall, "rejected": self.rejected_fall}
        for side, limit in limits.items():
            drift = logp_drift(history, run, side)
            if drift is not None and drift.nats < -limit:
                return self.advice(
                    history,
                    seen=f"{side} responses lost {-drift.nats:.1f} nats per token ({drift.basis})",
                    means="log-probabilities dropped sharply; samples degenerate even if the "
                    "accuracy is high",
                    change=self._cure(run),
                    at_most="warn",
                )
        return None

    @staticmethod
    def _cure(run: RunContext) -> str:
        return f"{run.method.weaken}, lower training.learning_rate, or {run.keep_likelihood}"
