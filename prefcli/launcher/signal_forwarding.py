"""Forwards the launcher's signals to its workers, and ends workers whose launcher is gone.

Schedulers send a signal before they preempt a job, often to the first process only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

LAUNCHER = "PREFCLI_LAUNCHER"
"""Environment variable of the workers: the launcher's process id."""

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl(2)."""
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SignalForwarder:
    """Handles each signal by recording it and sending it to the workers."""

    def __init__(self) -> None:
        self.received: dict[int, float] = {}
        """Signal number -> time of its first arrival, time.monotonic()."""
        self._workers: tuple[int, ...] = ()
        # An ignored signal stays ignored: nohup, or a background job of a script.
        handled = [number for number in _FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._forward) for number in handled}

    def send_to(self, workers: Iterable[int]) -> None:
        """Set the process ids of the workers, and send them the signals received so far."""
        self._workers = tuple(workers)
        for number in tuple(self.received):
            self._send(number)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> float | None:
        """Seconds since Ctrl-C; None if it was not pressed."""
        when = self.received.get(signal.SIGINT)
        return None if when is None else time.monotonic() - when

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received.setdefault(number, time.monotonic())
        self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker, number)


def end_with_launcher() -> None:
    """Let the kernel kill this worker when its launcher dies, even by SIGKILL."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    with suppress(AttributeError, OSError):  # not Linux
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != launcher:  # the launcher died before prctl
        os._exit(1)
