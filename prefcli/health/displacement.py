"""Chosen responses become less likely, too."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.logp_drift import drift
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Displacement(HealthRule):
    """The log-probability of chosen responses falls against step 0: likelihood displacement.

    A pairwise loss asks for a margin, and a margin grows as well where both sides fall and the
    rejected one falls faster (Razin et al. 2024, arXiv:2410.08847). The most asked question of
    all: huggingface/trl issues 800 and 1236, eric-mitchell/direct-preference-optimization issues
    8, 32 and 36. The thresholds are proposals; published DPO runs pass the first.
    """

    name: ClassVar[str] = "displacement"
    reads: ClassVar[tuple[str, ...]] = ("logps/chosen",)
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    note: Positive = 0.3
    """Nats a token, as a mean over chosen responses: a fall beyond it is a note."""
    warn_nats: Positive = 1.0
    """Nats a token: beyond it, as severe as `level`. At 1 their perplexity is 2.7 times as high."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        chosen = drift(history, facts, "chosen")
        if chosen is None or chosen.nats >= -min(self.note, self.warn_nats):
            return None
        rejected = drift(history, facts, "rejected")
        beside = f", rejected ones {-rejected.nats:.2f}" if rejected and rejected.nats < 0 else ""
        far = chosen.nats < -self.warn_nats
        usual = "as a rule the margin grows because rejected responses fall faster"
        return self.advice(
            history,
            seen=f"chosen responses lost {-chosen.nats:.2f} nats a token{beside} ({chosen.seen})",
            means=f"likelihood displacement; {usual}, and so far is more than published runs show"
            if far
            else f"likelihood displacement; {usual}, which is normal for {facts.method.name}",
            change=f"to hold them up, {facts.hold}; or {facts.method.weaken}"
            if far
            else f"nothing, unless it goes on; to hold them up, {facts.hold}",
            at_most="stop" if far else "note",
        )
