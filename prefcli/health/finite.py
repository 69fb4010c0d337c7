"""Numbers that are none."""

from __future__ import annotations

from typing import ClassVar

from prefcli.health.base import Advice, HealthRule, Loudness
from prefcli.health.metric_history import History, finite
from prefcli.health.run_context import RunContext

_LOG_PROBABILITIES = ("logps/", "rewards/chosen", "rewards/rejected")


class Finite(HealthRule):
    """A loss, a gradient or a log-probability is no longer a finite number.

    Once NaN is in the weights, it stays; runs were finished and published so (huggingface/trl
    issues 1473 and 2435, and models on the hub with an eval loss of 11.68).
    """

    name: ClassVar[str] = "finite"
    level: Loudness = "stop"

    def look(self, history: History, facts: RunContext) -> Advice | None:
        lost = [
            key
            for key, value in history.latest.items()
            if finite(value) is None and _must_be_finite(key.removeprefix("eval_"), facts)
        ]
        if not lost:
            return None
        verb = "is" if len(lost) == 1 else "are"
        return self.advice(
            history,
            seen=f"{', '.join(lost)} {verb} not finite",
            means="the step was too large, or a row is broken; the weights are lost",
            change="lower training.learning_rate, and look for broken rows with --dry-run",
        )


def _must_be_finite(key: str, facts: RunContext) -> bool:
    if key == "grad_norm":
        return not facts.fp16
    return key.endswith("loss") or key.startswith(_LOG_PROBABILITIES)
