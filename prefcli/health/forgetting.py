"""What the SFT stage taught is lost."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_OPENING = 10


class Forgetting(HealthRule):
    """The loss of sft_mix's demonstrations rises against its start.

    They are mixed in to hold up what the SFT stage taught; where their loss rises all the same,
    the preference outweighs them. The thresholds are proposals.
    """

    name: ClassVar[str] = "forgetting"
    needs: ClassVar[str | None] = "sft_mix"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    note: Positive = 0.2
    """Nats a token: a rise beyond it is a note."""
    rise: Positive = 0.5
    """Nats per token: a rise beyond it is as severe as `level`; 0.5 is 65 % more perplexity."""
    steps: Count = 30
    """Optimizer steps that are averaged; the start is the mean of the first 10."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        start = history.opening("sft_mix/loss", _OPENING)
        now = history.recent("sft_mix/loss", self.steps, after=start.end) if start else None
        if start is None or now is None:
            return None
        risen = now.mean - start.mean
        if risen <= min(self.note, self.rise):
            return None
        far = risen > self.rise
        return self.advice(
            history,
            seen=f"sft_mix/loss {now.mean:.2f}, and {start.mean:.2f} at the start",
            means="the policy forgets what the SFT stage taught it",
            change=f"raise sft_mix.weight or sft_mix.fraction, {facts.method.weaken}, or lower "
            "training.learning_rate"
            if far
            else "nothing, unless it goes on; then raise sft_mix.weight or sft_mix.fraction",
            at_most="stop" if far else "note",
        )
