"""Longer answers are preferred for being longer."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_SIGMAS = 3.0
_SMALLER_HALF = 0.25
"""Share of the pairs that is surely in the smaller of the two groups, for the sake of caution:
rows of metrics tell means, not counts."""


class Length(HealthRule):
    """The reward follows the length: pairs whose chosen side is shorter are told apart far worse.

    DPO turns a length bias of the data into longer answers (Park et al. 2024, arXiv:2403.19159;
    huggingface/trl issue 2964). A gap between the accuracies of both kinds of pairs, beyond what
    chance explains, is a note; where the shorter side wins in fewer than half of the pairs that
    prefer it, it is as loud as `on`. The gap is a proposal.
    """

    name: ClassVar[str] = "length"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    gap: Fraction = 0.25
    """Of accuracies: pairs with the longer side chosen, less those with the shorter side chosen."""
    pairs: Count = 1000
    """Train pairs that are averaged, all of them after warm-up."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        steps = math.ceil(self.pairs / facts.batch)
        longer = history.recent("rewards/accuracies_chosen_longer", steps, after=facts.warmup)
        shorter = history.recent("rewards/accuracies_chosen_shorter", steps, after=facts.warmup)
        if longer is None or shorter is None:
            return None
        pairs = min(longer.steps, shorter.steps) * facts.batch * _SMALLER_HALF
        noise = 0.5 / math.sqrt(pairs)
        wrong = shorter.mean + _SIGMAS * noise < 0.5
        if longer.mean - shorter.mean - _SIGMAS * math.sqrt(2) * noise <= self.gap:
            return None
        return self.advice(
            history,
            seen=f"accuracy {longer.mean:.2f} where chosen is longer, {shorter.mean:.2f} where it "
            f"is shorter{self._margins(history, facts, steps)}",
            means="the reward follows length, and answers will get longer"
            if wrong
            else "part of the reward follows length",
            change=_cure(facts),
            at_most="stop" if wrong else "note",
        )

    def _margins(self, history: History, facts: RunContext, steps: int) -> str:
        longer = history.recent("rewards/margins_chosen_longer", steps, after=facts.warmup)
        shorter = history.recent("rewards/margins_chosen_shorter", steps, after=facts.warmup)
        if longer is None or shorter is None:
            return ""
        return f" (margins {longer.mean:.3g} and {shorter.mean:.3g})"


def _cure(facts: RunContext) -> str:
    balance = "balance the lengths of chosen and rejected"
    advice = facts.method.length_bias_advice
    return balance if advice is None else f"{advice}, or {balance}"
