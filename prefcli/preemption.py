"""Handles SIGTERM and SIGUSR1, by which a scheduler preempts a job, and Ctrl-C during training.

Before `defer_signals` there is nothing to save, and a signal ends the command at once. Afterwards a
signal is only recorded, and training checks `received_signal` where it can stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from prefcli.console import is_main_process, is_screen, print_error, stream
from prefcli.errors import ExitCode, PreemptedError, PrefcliError
from prefcli.first_failure import another_failed, is_distributed

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPT = "SIGINT"
"""What `received_signal` returns after Ctrl-C."""
_SHOW_CURSOR = b"\x1b[?25h"
_INTERVAL = 0.5
"""Seconds between attempts to end the command."""
_ATTEMPTS = 20

_received: str | None = None
_deferred = False
_listener: int | None = None
"""The process that installed the handlers; its forks do not handle signals."""
_done = threading.Event()
"""Set once the command ends, so that signals have no further effect."""


class Stop(BaseException):
    """Ends the command. Not an Exception: libraries catch those and continue."""


class BreakOff(BaseException):
    """Ends an evaluation or a generation early, so that a checkpoint can be saved."""


def install_handlers(attempts: int = _ATTEMPTS) -> None:
    """Start to handle signals. Call it from the main thread.

    attempts: how often the main thread is signalled before the process ends without it.
    """
    global _received, _deferred, _listener, _done
    _done.set()
    _received, _deferred, _done = None, False, threading.Event()
    for number in _SIGNALS:
        signal.signal(number, _on_signal)
    if _listener != os.getpid():
        _watch_signals(attempts)
    _listener = os.getpid()


def ignore_signals() -> None:
    """Ignore signals, so that none changes the exit code during interpreter shutdown."""
    _done.set()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is _on_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def received_signal() -> str | None:
    """Return the name of the first signal received, if any."""
    return _received


def mark_received() -> None:
    """Record that another process received a signal, so that this one stops too."""
    global _received
    _received = _received or "another process received a signal"


def are_deferred() -> bool:
    """Return whether a signal is only recorded."""
    return _deferred


def defer_signals() -> None:
    """Record signals from here on, without stopping. Raises Stop if one was received before."""
    global _deferred
    if _received is not None and not _deferred:
        raise Stop
    _deferred = True
    # In launched processes, the launcher handles Ctrl-C; SIGINT may be ignored, as by nohup.
    if not is_distributed() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, _on_interrupt)


@contextmanager
def preemption_as_error() -> Iterator[None]:
    """Turn Stop, or the error that a library made of it, into a PreemptedError."""
    try:
        yield
    except Stop:
        _done.set()
        raise PreemptedError(_nothing_saved(), code="RUN001") from None
    except PrefcliError:
        raise
    except Exception:
        if _received is None or _deferred:
            raise
        _done.set()
        raise PreemptedError(_nothing_saved(), code="RUN001") from None


def _nothing_saved() -> str:
    return (
        f"preempted ({_received or 'a signal'}) before the first step; nothing to save. "
        "Rerun the same command to start again"
    )


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if _listener != os.getpid():
        os._exit(128 + number)  # forked by a thread, which could not reset its handlers
    if _received is None:
        if another_failed():
            _end()
        _received = signal.Signals(number).name
    if not (_deferred or _done.is_set()):
        raise Stop


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Record the first Ctrl-C, so that a checkpoint is saved; the second stops at once."""
    global _received
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _done.is_set():
        raise KeyboardInterrupt
    _received = _received or INTERRUPT
    print_error("interrupted: saving a checkpoint; press Ctrl-C again to stop without it\n")


def _watch_signals(attempts: int) -> None:
    """Notice signals while the main thread is inside a library and runs no Python handler."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def follow() -> None:
        while numbers := os.read(reading, 1):
            # A command that starts processes installs its own handlers.
            if signal.getsignal(numbers[0]) is _on_signal:
                _interrupt_main_thread(numbers[0], attempts)

    threading.Thread(target=follow, daemon=True, name="prefcli-signals").start()


def _interrupt_main_thread(number: int, attempts: int) -> None:
    """Signal the main thread again: libraries swallow Stop, or wait for a process that is gone."""
    done = _done
    if _received is None and another_failed():
        _end()
    for _ in range(attempts):
        if _deferred or done.wait(_INTERVAL):
            return
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    if is_main_process():
        os.write(2, f"{_nothing_saved()}\n".encode())
    _end(ExitCode.REQUEUE)


def _end(code: int = 128 + signal.SIGTERM) -> None:
    """Exit at once: another process has failed and reported why."""
    if is_screen():
        with suppress(OSError):
            os.write(stream().fileno(), _SHOW_CURSOR)
    os._exit(code)


def _in_child() -> None:
    """Restore default handlers in a fork: a pool ends its workers by SIGTERM."""
    if _listener is None:
        return
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
