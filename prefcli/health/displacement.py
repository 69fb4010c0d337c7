"""Likelihood displacement: chosen responses become less likely, too."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.logp_drift import logp_drift
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Displacement(HealthRule):
    """Likelihood displacement: chosen responses are less likely than at step 0.

    A pairwise loss rewards a margin, which also grows if both sides fall and the rejected one
    falls faster (Razin et al. 2024, arXiv:2410.08847). It is the most frequent question about
    DPO: huggingface/trl issues 800 and 1236, eric-mitchell/direct-preference-optimization issues
    8, 32 and 36. The thresholds are proposals; published DPO runs exceed the first.
    """

    name: ClassVar[str] = "displacement"
    reads: ClassVar[tuple[str, ...]] = ("logps/chosen",)
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    note: Positive = 0.3
    """Nats per token, the mean over chosen responses: a larger fall is a note."""
    warn_nats: Positive = 1.0
    """Nats per token: a larger fall has the rule's level. 1 nat is a factor of 2.7 in
    perplexity."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        chosen = logp_drift(history, run, "chosen")
        if chosen is None or chosen.nats >= -min(self.note, self.warn_nats):
            return None
        rejected = logp_drift(history, run, "rejected")
        other = f", rejected ones {-rejected.nats:.2f}" if rejected and rejected.nats < 0 else ""
        far = chosen.nats < -self.warn_nats
        usual = "the margin usually grows because rejected responses fall faster"
        return self.advice(
            history,
            seen=f"chosen responses lost {-chosen.nats:.2f} nats per token{other} ({chosen.basis})",
            means=f"likelihood displacement; {usual}, but this is more than published runs show"
            if far
            else f"likelihood displacement; {usual}, which is normal for {run.method.name}",
            change=f"{run.keep_likelihood}; or {run.method.weaken}"
            if far
            else f"nothing, unless it continues; then {run.keep_likelihood}",
            at_most="stop" if far else "note",
        )
