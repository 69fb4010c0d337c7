"""What the process that a job started is told, its workers must hear.

Schedulers send a signal before they take the machine away, and often to the first process only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Signals:
    """Takes them from here on, dies of none, and passes each on."""

    def __init__(self) -> None:
        self.received: dict[int, float] = {}
        """Which, and when each came first."""
        self._workers: tuple[int, ...] = ()
        # What is ignored stays so: nohup, or a job in the background of a script.
        heard = [each for each in _FORWARDED if signal.getsignal(each) != signal.SIG_IGN]
        self._before = {each: signal.signal(each, self._forward) for each in heard}

    def send_to(self, workers: Iterable[int]) -> None:
        """Process ids; what came before they were there is sent now."""
        self._workers = tuple(workers)
        for each in tuple(self.received):
            self._send(each)

    def restore(self) -> None:
        """To whoever handled them before."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @property
    def interrupted(self) -> float | None:
        """Seconds since Ctrl-C, or None."""
        when = self.received.get(signal.SIGINT)
        return None if when is None else time.monotonic() - when

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received.setdefault(number, time.monotonic())
        self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker, number)
