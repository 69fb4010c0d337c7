"""Log odds of ORPO that do not rise."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_NOISE = 1.5
"""Three standard deviations of the log odds of one pair, which are usually 0.5 nats."""

_FIRST_PAIRS = 200


class OrpoOdds(HealthRule):
    """ORPO's log odds of chosen over rejected are neither above 0 nor rising after a fifth of the
    run.

    xfactlab/orpo issues 26 and 28. With a small lambda the SFT term, which raises both sides
    equally, outweighs the preference.
    """

    name: ClassVar[str] = "orpo_odds"
    reads: ClassVar[tuple[str, ...]] = ("log_odds_chosen",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    share: Fraction = 0.2
    """Share of the run's steps before which it does not report. A proposal."""
    pairs: Count = 1000
    """Training pairs that are averaged."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        steps = max(math.ceil(self.pairs / run.batch), 30)
        if history.step < max(self.share * run.steps, run.warmup + steps):
            return None
        now = history.recent("log_odds_chosen", steps, after=run.warmup)
        start = history.opening("log_odds_chosen", math.ceil(_FIRST_PAIRS / run.batch))
        if now is None or start is None or now.mean > 0:
            return None
        noise = _NOISE / math.sqrt(min(start.steps, now.steps) * run.batch)
        if now.mean > start.mean + noise:
            return None
        return self.advice(
            history,
            seen=f"log odds {now.mean:.3f}, the mean of {now.steps} steps; {start.mean:.3f} at the "
            "start",
            means="chosen responses do not become more likely than rejected ones; the SFT term "
            "outweighs the preference, or labels are wrong",
            change="raise orpo.lambda or training.learning_rate, or look at the pairs with "
            "`prefcli data`",
        )
