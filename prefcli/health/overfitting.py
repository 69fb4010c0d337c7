"""A held-out loss that rises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from prefcli.config_base import Count, NonNegative, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History, Point
from prefcli.health.run_context import RunContext
from prefcli.methods import Method

MAX_RATIO = 1.5
"""Ratio to the step-0 eval loss; zephyr-7b-beta ended at 1.08 times its start and is fine."""


class Overfitting(HealthRule):
    """The eval loss rises while the training loss falls, or it is far above its value at step 0.

    hiyouga/LLaMA-Factory issue 4637. A preference loss may rise by confidence alone while the
    accuracy stays: zephyr-7b-beta ended at an eval loss of 0.75, above ln 2, with its published
    accuracy of 0.78. So a rise is a note if the accuracy on data.eval has not fallen.
    """

    name: ClassVar[str] = "overfitting"
    needs: ClassVar[str | None] = "data.eval"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    evals: Count = 3
    """Successive evaluations above the best one."""
    rise: NonNegative = 0.02
    """Share of the best eval loss by which the last one must be above it."""
    accuracy: NonNegative = 0.02
    """A loss of accuracy on data.eval since the best evaluation; a smaller one is a note."""
    max_ratio: Positive = MAX_RATIO
    """Ratio to the step-0 eval loss above which this rule always has its level."""

    @classmethod
    def applies(cls, method: Method) -> bool:
        """Return False for a method whose training loss has no trend, as it compares samples."""
        return not method.needs_judge

    def check(self, history: History, run: RunContext) -> Advice | None:
        points = history.points("eval_loss")
        if len(points) < 2:
            return None
        return self._above_start(history, points) or self._rising(history, points)

    def _above_start(self, history: History, points: Sequence[Point]) -> Advice | None:
        first, last = points[0], points[-1]
        if first.step != 0 or first.value <= 0 or last.value <= self.max_ratio * first.value:
            return None
        return self.advice(
            history,
            seen=f"eval loss {last.value:.3g}, was {first.value:.3g} before the first step",
            means="held-out loss is much worse than at step 0",
            change="lower training.learning_rate, train for fewer epochs, or use an earlier "
            "checkpoint",
        )

    def _rising(self, history: History, points: Sequence[Point]) -> Advice | None:
        best = min(points, key=lambda point: point.value)
        after = [point for point in points if point.step > best.step]
        last = points[-1]
        if len(after) < self.evals or last.value - best.value <= self.rise * abs(best.value):
            return None
        if not _train_loss_falls(history, best.step):
            return None
        accuracy_loss = _accuracy_loss(history, best.step)
        mild = accuracy_loss is not None and accuracy_loss <= self.accuracy
        accuracy = ""
        if accuracy_loss is not None:
            accuracy = ", accuracy " + ("unchanged" if mild else f"{accuracy_loss:.2f} lower")
        return self.advice(
            history,
            seen=f"eval loss {last.value:.4g}, after its best of {best.value:.4g} at step "
            f"{best.step}, while the training loss falls{accuracy}",
            means="confidence grows on data.eval without better accuracy"
            if mild
            else "overfitting",
            change="nothing if accuracy is what counts, else train for fewer epochs"
            if mild
            else f"use the checkpoint nearest to step {best.step}, train for fewer epochs, or on "
            "more rows",
            at_most="note" if mild else "stop",
        )


def _train_loss_falls(history: History, step: int) -> bool:
    """Return whether the training loss since `step` is lower than in as many rows before it."""
    points = history.points("loss")
    after = [point.value for point in points if point.step > step]
    before = [point.value for point in points if point.step <= step][-max(len(after), 1) :]
    if not before or not after:
        return False
    return sum(after) / len(after) < sum(before) / len(before)


def _accuracy_loss(history: History, step: int) -> float | None:
    points = history.points("eval_rewards/accuracies")
    then = [point.value for point in points if point.step == step]
    return then[-1] - points[-1].value if then and step > 0 else None
