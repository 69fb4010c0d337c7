"""The pace of a run and its estimated end. Pure: all times are arguments, in seconds."""

from __future__ import annotations

import time
from collections import deque

from prefcli.text import format_duration

_RECENT = 50
_ENOUGH = 3
"""Intervals between steps that a forecast needs."""


class Pace:
    """Durations of steps, and separately of evaluations and checkpoints between them."""

    def __init__(
        self,
        first: int,
        total: int,
        now: float,
        *,
        eval_every: int | None = None,
        save_every: int | None = None,
    ) -> None:
        """first: steps that were done before; eval_every: None if only the ends are evaluated."""
        self.step, self.total = first, total
        self.started = now
        self._eval_every, self._save_every = eval_every, save_every
        self._ends: deque[float] = deque(maxlen=_RECENT + 1)
        """Ends of steps, without the time between steps."""
        self._paused = 0.0
        self._last_end = now
        self._evaluated, self._saved = 0.0, False
        self._eval_cost: float | None = None
        self._save_cost = 0.0

    def begin(self, now: float) -> None:
        """Start a step; the time since the previous one was evaluation or saving."""
        if self._evaluated or self._saved:
            gap = now - self._last_end
            self._paused += gap
            if self._saved:
                self._save_cost = max(0.0, gap - self._evaluated)
            elif self._ends:
                self._eval_cost = gap  # including samples
        self._evaluated, self._saved = 0.0, False

    def end(self, step: int, now: float) -> None:
        self.step, self._last_end = step, now
        self._ends.append(now - self._paused)

    def evaluated(self, seconds: float) -> None:
        self._evaluated += seconds
        self._eval_cost = seconds

    def saved(self) -> None:
        self._saved = True

    @property
    def seconds_per_step(self) -> float | None:
        """The mean of the recent steps, without the first one, which includes warm-up."""
        intervals = len(self._ends) - 1
        return (self._ends[-1] - self._ends[0]) / intervals if intervals > 0 else None

    @property
    def is_known(self) -> bool:
        return len(self._ends) > _ENOUGH

    def remaining(self, now: float) -> float | None:
        """Return the seconds until the last step and the last evaluation are done."""
        if self.seconds_per_step is None:
            return None
        seconds = self.seconds_per_step * (self.total - self.step)
        if self._eval_cost is not None:
            seconds += self._eval_cost * self._remaining_evaluations()
        if self._save_every:
            # The last step is always saved.
            seconds += self._save_cost * (-(-self.total // self._save_every) - self._done_saves())
        return max(0.0, seconds - (now - self._last_end if self.step < self.total else 0.0))

    def _remaining_evaluations(self) -> int:
        every = self._eval_every
        between = (self.total - 1) // every - self.step // every if every else 0
        return max(0, between) + (self.step < self.total)

    def _done_saves(self) -> int:
        assert self._save_every is not None
        periodic = self.step // self._save_every
        return periodic + (self.step == self.total and self.total % self._save_every > 0)

    def forecast(self, now: float, wall: float) -> str:
        """Return the estimated end as text. wall: `now` as seconds since 1970."""
        seconds = self.remaining(now)
        assert seconds is not None
        assert self.seconds_per_step is not None
        return (
            f"plan: at {format_step_time(self.seconds_per_step)} the run ends at about "
            f"{format_clock(wall + seconds, wall)} (in {format_duration(seconds)})"
        )


def format_clock(then: float, now: float) -> str:
    """Return the local time of day, with the date if it is not today."""
    at, today = time.localtime(then), time.localtime(now)
    is_today = (at.tm_year, at.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", at)


def format_step_time(seconds: float) -> str:
    return f"{seconds:.1f} s per step" if seconds >= 10 else f"{seconds:.2g} s per step"
