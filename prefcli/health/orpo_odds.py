"""ORPO's odds do not move."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_NOISE = 1.5
"""Three times what the log odds of one pair vary by, 0.5 nats as a rule."""

_FIRST_PAIRS = 200


class OrpoOdds(HealthRule):
    """A fifth into the run, orpo's log odds of chosen over rejected are not above 0, nor rising.

    xfactlab/orpo issues 26 and 28. With a small lambda the SFT term, which raises both sides
    alike, outweighs the preference.
    """

    name: ClassVar[str] = "orpo_odds"
    reads: ClassVar[tuple[str, ...]] = ("log_odds_chosen",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    share: Fraction = 0.2
    """Of the run's steps that are waited for. A proposal."""
    pairs: Count = 1000
    """Train pairs that are averaged."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        steps = max(math.ceil(self.pairs / facts.batch), 30)
        if history.step < max(self.share * facts.steps, facts.warmup + steps):
            return None
        now = history.recent("log_odds_chosen", steps, after=facts.warmup)
        start = history.opening("log_odds_chosen", math.ceil(_FIRST_PAIRS / facts.batch))
        if now is None or start is None or now.mean > 0:
            return None
        noise = _NOISE / math.sqrt(min(start.steps, now.steps) * facts.batch)
        if now.mean > start.mean + noise:
            return None
        return self.advice(
            history,
            seen=f"log odds {now.mean:.3f}, the mean of {now.steps} steps; {start.mean:.3f} at the "
            "start",
            means="chosen responses are not becoming likelier than rejected ones; the SFT term "
            "outweighs the preference, or labels are wrong",
            change="raise orpo.lambda or training.learning_rate, or look at the pairs with "
            "`prefcli data`",
        )
