"""Better on what it has seen, worse on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from prefcli.config_base import Count, NonNegative, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History, Point
from prefcli.health.run_context import RunContext

MAX_RATIO = 1.5
"""Ratio to the step-0 eval loss; zephyr-7b-beta ended at 1.08 times its start and is fine."""


class Overfitting(HealthRule):
    """The eval loss rises while the train loss falls; or it is far above its value at step 0.

    hiyouga/LLaMA-Factory issue 4637. A preference loss may rise by confidence alone while
    accuracy holds: zephyr-7b-beta ended at an eval loss of 0.75, above ln 2, with the accuracy of
    0.78 it was published for. So a rise is a note where the accuracy on data.eval has not fallen.
    """

    name: ClassVar[str] = "overfitting"
    needs: ClassVar[str | None] = "data.eval"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse",)

    evals: Count = 3
    """Evaluations in a row above the best one."""
    rise: NonNegative = 0.02
    """Share of the best eval loss by which the last of them must be above it."""
    accuracy: NonNegative = 0.02
    """Accuracy on data.eval that may be lost since then: less is a note."""
    max_ratio: Positive = MAX_RATIO
    """So many times the eval loss of step 0 is as severe as `level`, whatever the rest says."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        points = history.points("eval_loss")
        if len(points) < 2:
            return None
        return self._far(history, points) or self._rising(history, points)

    def _far(self, history: History, points: Sequence[Point]) -> Advice | None:
        first, last = points[0], points[-1]
        if first.step != 0 or first.value <= 0 or last.value <= self.max_ratio * first.value:
            return None
        return self.advice(
            history,
            seen=f"eval loss {last.value:.3g}, and {first.value:.3g} before the first step",
            means="on rows it does not train on, the run does harm",
            change="lower training.learning_rate, train for fewer epochs, or take an earlier "
            "checkpoint",
        )

    def _rising(self, history: History, points: Sequence[Point]) -> Advice | None:
        best = min(points, key=lambda point: point.value)
        after = [point for point in points if point.step > best.step]
        last = points[-1]
        if len(after) < self.evals or last.value - best.value <= self.rise * abs(best.value):
            return None
        if not _falls(history, best.step):
            return None
        lost = _lost_accuracy(history, best.step)
        mild = lost is not None and lost <= self.accuracy
        beside = "" if lost is None else f", accuracy {'held' if mild else f'{lost:.2f} lower'}"
        return self.advice(
            history,
            seen=f"eval loss {last.value:.4g}, after its best of {best.value:.4g} at step "
            f"{best.step}, while the train loss falls{beside}",
            means="it grows surer of itself on data.eval, and no better" if mild else "overfitting",
            change="nothing, if accuracy is what counts; else fewer epochs"
            if mild
            else f"take the checkpoint nearest to step {best.step}, train for fewer epochs, or on "
            "more rows",
            at_most="note" if mild else "stop",
        )


def _falls(history: History, step: int) -> bool:
    """Is the train loss lower since `step` than in as many rows before it?"""
    points = history.points("loss")
    after = [point.value for point in points if point.step > step]
    before = [point.value for point in points if point.step <= step][-max(len(after), 1) :]
    if not before or not after:
        return False
    return sum(after) / len(after) < sum(before) / len(before)


def _lost_accuracy(history: History, step: int) -> float | None:
    points = history.points("eval_rewards/accuracies")
    then = [point.value for point in points if point.step == step]
    return then[-1] - points[-1].value if then and step > 0 else None
