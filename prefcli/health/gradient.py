"""Spikes of the gradient norm."""

from __future__ import annotations

from statistics import median
from typing import ClassVar

from prefcli.config_base import Count, Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_ROWS = 50
"""Rows in which spikes are counted, in addition to those for the median."""


class Gradient(HealthRule):
    """The gradient norm spikes: once is a note, repeatedly a warning.

    It is compared with the median of the rows before, and with the largest norm so far: as the
    loss approaches 0 so does the median, and any hard pair would be a spike. Clipping
    (training.max_grad_norm) limits the step, not its direction. The values are proposals.
    """

    name: ClassVar[str] = "gradient"
    defers_to: ClassVar[tuple[str, ...]] = ("collapse", "finite")

    spike_factor: Positive = 10.0
    """A spike is larger than the median of the rows before it by this factor, and than the
    largest other row by 2."""
    rows: Count = 20
    """Rows after warm-up that the median needs."""
    spikes: Count = 3
    """Spikes within 50 rows that have the rule's level; fewer are a note."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        points = [
            p for p in history.points("grad_norm")[-(self.rows + _ROWS) :] if p.step > run.warmup
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
            else "a spike, which is harmless if it is clipped",
            change="lower training.learning_rate or training.max_grad_norm, or lengthen the "
            "warm-up; look at the rows with `prefcli data`"
            if often
            else "nothing, unless it happens again",
            at_most="stop" if often else "note",
        )
