"""Loss of what the SFT stage taught."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_OPENING = 10


class Forgetting(HealthRule):
    """The loss on the demonstrations of sft_mix rises above its start.

    They are mixed in to preserve what the SFT stage taught; if their loss rises anyway, the
    preference outweighs them. The thresholds are proposals.
    """

    name: ClassVar[str] = "forgetting"
    needs_language_model: ClassVar[bool] = True
    needs: ClassVar[str | None] = "sft_mix"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    note: Positive = 0.2
    """Nats per token: a larger rise is a note."""
    rise: Positive = 0.5
    """Nats per token: a larger rise has the rule's level. 0.5 nats are a factor of 1.65 in
    perplexity."""
    steps: Count = 30
    """Optimizer steps that are averaged; the start is the mean of the first 10."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        windows = history.from_opening("sft_mix/loss", _OPENING, self.steps)
        if windows is None:
            return None
        start, now = windows
        rise = now.mean - start.mean
        if rise <= min(self.note, self.rise):
            return None
        far = rise > self.rise
        return self.advice(
            history,
            seen=f"sft_mix/loss {now.mean:.2f}, was {start.mean:.2f} at the start",
            means="the policy forgets what the SFT stage taught it",
            change=f"raise sft_mix.weight or sft_mix.fraction, {run.method.weaken}, or lower "
            "training.learning_rate"
            if far
            else "nothing, unless it continues; then raise sft_mix.weight or sft_mix.fraction",
            at_most="stop" if far else "note",
        )
