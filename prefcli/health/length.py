"""A reward that follows length."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_SIGMAS = 3.0
_SMALLER_GROUP = 0.25
"""Share of the pairs that the smaller group is assumed to have: metrics have means, not counts."""


class Length(HealthRule):
    """The accuracy is much lower on pairs whose chosen response is the shorter one.

    DPO turns a length bias of the data into longer responses (Park et al. 2024, arXiv:2403.19159;
    huggingface/trl issue 2964). A gap between the accuracies of both groups beyond noise is a
    note; it has the rule's level if the shorter response wins fewer than half of the pairs that
    prefer it. The gap is a proposal.
    """

    name: ClassVar[str] = "length"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    gap: Fraction = 0.25
    """Accuracy where chosen is longer, minus accuracy where it is shorter."""
    pairs: Count = 1000
    """Training pairs that are averaged, all of them after warm-up."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        steps = math.ceil(self.pairs / run.batch)
        longer = history.recent("rewards/accuracies_chosen_longer", steps, after=run.warmup)
        shorter = history.recent("rewards/accuracies_chosen_shorter", steps, after=run.warmup)
        if longer is None or shorter is None:
            return None
        pairs = min(longer.steps, shorter.steps) * run.batch * _SMALLER_GROUP
        error = 0.5 / math.sqrt(pairs)
        wrong = shorter.mean + _SIGMAS * error < 0.5
        if longer.mean - shorter.mean - _SIGMAS * math.sqrt(2) * error <= self.gap:
            return None
        return self.advice(
            history,
            seen=f"accuracy {longer.mean:.2f} where chosen is longer, {shorter.mean:.2f} where it "
            f"is shorter{self._margins(history, run, steps)}",
            means="the reward follows length, and responses will get longer"
            if wrong
            else "part of the reward follows length",
            change=_cure(run),
            at_most="stop" if wrong else "note",
        )

    def _margins(self, history: History, run: RunContext, steps: int) -> str:
        longer = history.recent("rewards/margins_chosen_longer", steps, after=run.warmup)
        shorter = history.recent("rewards/margins_chosen_shorter", steps, after=run.warmup)
        if longer is None or shorter is None:
            return ""
        return f" (margins {longer.mean:.3g} and {shorter.mean:.3g})"


def _cure(run: RunContext) -> str:
    balance = "balance the lengths of chosen and rejected"
    advice = run.method.length_bias_advice
    return balance if advice is None else f"{advice}, or {balance}"
