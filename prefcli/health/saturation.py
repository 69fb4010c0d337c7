"""Nothing is left to learn."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Saturation(HealthRule):
    """The reward accuracy on train pairs is 1.0 for long: over-optimised, or easy pairs.

    Over 0.9 on training pairs is the aim, and published runs of several epochs come close to 1;
    at 1.0 for thousands of pairs, rows repeat or the sides differ by something trivial, and what
    still moves is the margin alone. Where data.eval is told apart as well, it is a note.
    """

    name: ClassVar[str] = "saturation"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("margin", "collapse", "overfitting")

    accuracy: Fraction = 0.999
    """Mean accuracy from which on it counts as 1."""
    pairs: Count = 4000
    """Train pairs that are averaged. A proposal."""
    steps: Count = 100
    """Optimizer steps that are averaged, at the least."""
    eval_accuracy: Fraction = 0.95
    """From here on data.eval is told apart as well."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        steps = max(math.ceil(self.pairs / facts.batch), self.steps)
        seen = history.recent("rewards/accuracies", steps)
        if seen is None or seen.mean < self.accuracy:
            return None
        what = f"accuracy {seen.mean:.3f} over the last {seen.steps * facts.batch} train pairs"
        on_eval = history.last("eval_rewards/accuracies")
        if on_eval is not None and on_eval.step > 0:
            what += f", {on_eval.value:.2f} on data.eval"
            if on_eval.value >= self.eval_accuracy:
                return self.advice(
                    history,
                    seen=what,
                    means="the pairs are easy; more steps only widen the margin",
                    change="fewer epochs, or harder pairs",
                    at_most="note",
                )
        return self.advice(
            history,
            seen=what,
            means="over-optimised; rows repeat, or something trivial tells the sides apart",
            change="fewer epochs, a lower training.learning_rate; look for duplicates with "
            "`prefcli data`",
        )
