"""How fast a run goes, and when it will end. Pure: every time is given, in seconds."""

from __future__ import annotations

import time
from collections import deque

_RECENT = 50
_ENOUGH = 3
"""Intervals between steps that a forecast is made of."""


class Pace:
    """Steps, and what comes between them (evaluations, checkpoints), timed apart."""

    def __init__(
        self,
        first: int,
        total: int,
        now: float,
        *,
        eval_every: int | None = None,
        save_every: int | None = None,
    ) -> None:
        """first: steps done before this process; eval_every: None where only the ends count."""
        self.step, self.total = first, total
        self.started = now
        self._eval_every, self._save_every = eval_every, save_every
        self._ends: deque[float] = deque(maxlen=_RECENT + 1)
        self._paused = 0.0
        self._last_end = now
        self._evaluated, self._saved = 0.0, False
        self._eval_cost: float | None = None
        self._save_cost = 0.0

    def begin(self, now: float) -> None:
        """A step begins: what lies between it and the last one was no training."""
        if self._evaluated or self._saved:
            gap = now - self._last_end
            self._paused += gap
            if self._saved:
                self._save_cost = max(0.0, gap - self._evaluated)
            elif self._ends:
                self._eval_cost = gap  # samples and all
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
    def a_step(self) -> float | None:
        """Seconds; the first step, which pays for warm caches, is left out."""
        intervals = len(self._ends) - 1
        return (self._ends[-1] - self._ends[0]) / intervals if intervals > 0 else None

    @property
    def is_known(self) -> bool:
        return len(self._ends) > _ENOUGH

    def left(self, now: float) -> float | None:
        """Seconds until the last step and the last evaluation are over."""
        if self.a_step is None:
            return None
        seconds = self.a_step * (self.total - self.step)
        if self._eval_cost is not None:
            seconds += self._eval_cost * self._evaluations_left()
        if self._save_every:
            # The last step is saved, too, wherever it falls.
            seconds += self._save_cost * (-(-self.total // self._save_every) - self._done_saves())
        return max(0.0, seconds - (now - self._last_end if self.step < self.total else 0.0))

    def _evaluations_left(self) -> int:
        every = self._eval_every
        between = (self.total - 1) // every - self.step // every if every else 0
        return max(0, between) + (self.step < self.total)

    def _done_saves(self) -> int:
        assert self._save_every is not None
        whole = self.step // self._save_every
        return whole + (self.step == self.total and self.total % self._save_every > 0)

    def forecast(self, now: float, wall: float) -> str:
        """wall: the same moment as seconds since 1970."""
        left = self.left(now)
        assert left is not None
        assert self.a_step is not None
        return (
            f"plan: at {seconds_a_step(self.a_step)} the run ends about "
            f"{clock(wall + left, wall)} (in {duration(left)})"
        )


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def clock(then: float, now: float) -> str:
    """Local time of day, with the date where that is another day's."""
    at, today = time.localtime(then), time.localtime(now)
    same = (at.tm_year, at.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", at)


def seconds_a_step(seconds: float) -> str:
    return f"{seconds:.1f} s a step" if seconds >= 10 else f"{seconds:.2g} s a step"
