"""Steps that throw the policy off."""

from __future__ import annotations

from statistics import median
from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_ROWS = 50
"""In which spikes are counted, beyond those that the median needs."""


class Gradient(HealthRule):
    """The gradient's norm jumps: once is a note, again and again a warning.

    It is measured against the median of the rows before it, and against the largest norm so far:
    when the loss nears 0 the median does too, and any hard pair stands out. Clipping
    (training.max_grad_norm) bounds the step, not the direction. The figures are proposals.
    """

    name: ClassVar[str] = "gradient"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse", "finite")

    spike_factor: Positive = 10.0
    """A spike is so many times the median of the rows before it, and twice the largest of those
    that are no spikes."""
    rows: Count = 20
    """Rows after warm-up that the median needs."""
    spikes: Count = 3
    """So many within 50 rows are as severe as `level`; a single one is a note."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        points = [
            p for p in history.points("grad_norm")[-(self.rows + _ROWS) :] if p.step > facts.warmup
        ]
        if len(points) <= self.rows:
            return None
        usual = median(point.value for point in points)
        calm = [point.value for point in points if point.value <= self.spike_factor * usual]
        if usual <= 0 or not calm:
            return None
        bound = max(self.spike_factor * usual, 2 * max(calm))
        spikes = [point for point in points[self.rows :] if point.value > bound]
        if not spikes:
            return None
        often = len(spikes) >= self.spikes
        largest = max(spikes, key=lambda point: point.value)
        return self.advice(
            history,
            seen=f"gradient norm {largest.value:.3g} at step {largest.step}, median {usual:.3g}"
            + (f", and {len(spikes)} such spikes in {len(points)} rows" if often else ""),
            means="training is unstable; the learning rate is too high, or rows are broken"
            if often
            else "a spike; one is harmless when it is clipped",
            change="lower training.learning_rate or training.max_grad_norm, or lengthen the "
            "warm-up; look at the rows with `prefcli data`"
            if often
            else "nothing, unless it comes again",
            at_most="stop" if often else "note",
        )
