"""Lines about work that takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefcli.console import say

_SECONDS = 20.0


class Progress:
    """Counts what is done, and prints a line now and then."""

    def __init__(
        self,
        what: str,
        noun: str,
        total: int,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """what: the work, at the beginning of a line. done: what an earlier start has done."""
        self._what, self._noun, self._total, self._clock = what, noun, total, clock
        self._first = self._done = done
        self._began = self._reported = clock()

    def add(self, count: int) -> None:
        """Count what is done."""
        self._done += count
        now = self._clock()
        if now - self._reported < _SECONDS or self._done >= self._total:
            return
        self._reported = now
        left = (now - self._began) * (self._total - self._done) / (self._done - self._first)
        minutes = f"{left / 60:.0f} minutes" if left >= 90 else f"{left:.0f} seconds"
        say(
            f"{self._what}: {self._done:,} of {self._total:,} {self._noun}s scored, "
            f"about {minutes} left"
        )
