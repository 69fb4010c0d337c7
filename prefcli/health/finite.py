"""Values that are not finite."""

from __future__ import annotations

from typing import ClassVar

from prefcli.health.base import Advice, HealthRule, LevelOrOff
from prefcli.health.metric_history import History, finite
from prefcli.health.run_context import RunContext

_LOG_PROBABILITIES = ("logps/", "rewards/chosen", "rewards/rejected")


class Finite(HealthRule):
    """A loss, a gradient or a log-probability is not finite.

    NaN stays in the weights. Runs in that state were completed and published (huggingface/trl
    issues 1473 and 2435, and models on the hub with an eval loss of 11.68).
    """

    name: ClassVar[str] = "finite"
    level: LevelOrOff = "stop"

    def check(self, history: History, run: RunContext) -> Advice | None:
        keys = [
            key
            for key, value in history.latest.items()
            if finite(value) is None and _must_be_finite(key.removeprefix("eval_"), run)
        ]
        if not keys:
            return None
        verb = "is" if len(keys) == 1 else "are"
        return self.advice(
            history,
            seen=f"{', '.join(keys)} {verb} not finite",
            means="the step was too large or a row is broken, and the weights cannot recover",
            change="lower training.learning_rate, and check the rows with --dry-run",
        )


def _must_be_finite(key: str, run: RunContext) -> bool:
    if key == "grad_norm":
        return not run.fp16
    return key.endswith("loss") or key.startswith(_LOG_PROBABILITIES)
