"""A reward accuracy of 1."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class Saturation(HealthRule):
    """The reward accuracy on training pairs is 1.0 for long: overfitted, or easy pairs.

    Over 0.9 on training pairs is the aim, and published runs of several epochs come close to 1.
    At 1.0 for thousands of pairs, rows repeat or the sides differ by something trivial, and only
    the margin still grows. If data.eval is separated as well, it is a note.
    """

    name: ClassVar[str] = "saturation"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("margin", "collapse", "overfitting")

    accuracy: Fraction = 0.999
    """Mean accuracy that counts as 1."""
    pairs: Count = 4000
    """Training pairs that are averaged. A proposal."""
    steps: Count = 100
    """Minimum of optimizer steps that are averaged."""
    eval_accuracy: Fraction = 0.95
    """Accuracy on data.eval that counts as separated."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        steps = max(math.ceil(self.pairs / run.batch), self.steps)
        accuracy = history.recent("rewards/accuracies", steps)
        if accuracy is None or accuracy.mean < self.accuracy:
            return None
        pairs = accuracy.steps * run.batch
        seen = f"accuracy {accuracy.mean:.3f} over the last {pairs} training pairs"
        held_out = history.last("eval_rewards/accuracies")
        if held_out is not None and held_out.step > 0:
            seen += f", {held_out.value:.2f} on data.eval"
            if held_out.value >= self.eval_accuracy:
                return self.advice(
                    history,
                    seen=seen,
                    means="the pairs are easy; more steps only widen the margin",
                    change="train for fewer epochs, or on harder pairs",
                    at_most="note",
                )
        return self.advice(
            history,
            seen=seen,
            means="the policy is overfitted; rows repeat, or the sides differ by something trivial",
            change="train for fewer epochs or lower training.learning_rate; look for duplicates "
            "with `prefcli data`",
        )
