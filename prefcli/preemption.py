"""SIGTERM and SIGUSR1: the machine is wanted back, and whoever runs on it makes room.

Until `hold` nothing is half done that would be missed, and the signal ends the command where it
stands. From then on it is only remembered, and a run looks for it (`asked`) where it can stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from prefcli.console import is_main_process, is_screen, stream
from prefcli.errors import ExitCode, PreemptedError, PrefcliError
from prefcli.first_failure import another_failed

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SHOW_CURSOR = b"\x1b[?25h"
_AGAIN = 0.5
"""Seconds from one try to end the command to the next."""
_TRIES = 20

_received: str | None = None
_deferred = False
_listener: int | None = None
"""The process that listens; what it forks does not."""
_done = threading.Event()
"""Nobody need be told any more."""


class Stop(BaseException):
    """Ends the command. No Exception: libraries take those for errors of theirs, and go on."""


class BreakOff(BaseException):
    """Ends what only looks at the weights (an evaluation, an answer), so that they can be saved."""


def install_handlers() -> None:
    """From now on a signal has its say. For the main thread."""
    global _received, _deferred, _listener, _done
    _done.set()
    _received, _deferred, _done = None, False, threading.Event()
    for number in _SIGNALS:
        signal.signal(number, _on_signal)
    if _listener != os.getpid():
        _watch_signals()
    _listener = os.getpid()


def ignore_signals() -> None:
    """The exit code is settled, and no signal changes it while the interpreter cleans up."""
    _done.set()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def received_signal() -> str | None:
    """The name of the signal that came first, if one did."""
    return _received


def mark_received() -> None:
    """Another process was asked, so this one is as well."""
    global _received
    _received = _received or "another process was asked to stop"


def are_deferred() -> bool:
    return _deferred


def defer_signals() -> None:
    """From now on a signal is remembered, and ends nothing by itself. Raises Stop if one came."""
    global _deferred
    if _received is not None and not _deferred:
        raise Stop
    _deferred = True


@contextmanager
def preemption_as_error() -> Iterator[None]:
    """Stop as a PreemptedError, and so what a library made of it on the way."""
    try:
        yield
    except Stop:
        _done.set()
        raise PreemptedError(_nothing_saved()) from None
    except PrefcliError:
        raise
    except Exception:
        if _received is None or _deferred:
            raise
        _done.set()
        raise PreemptedError(_nothing_saved()) from None


def _nothing_saved() -> str:
    return (
        f"pre-empted ({_received or 'a signal'}) before a step was trained: nothing was to be "
        "saved; the same command goes on"
    )


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if _listener != os.getpid():
        os._exit(128 + number)  # forked by a thread, which could not set its handlers back
    if _received is None:
        if another_failed():
            _end()
        _received = signal.Signals(number).name
    if not (_deferred or _done.is_set()):
        raise Stop


def _watch_signals() -> None:
    """Hear of signals also while the main thread is inside a library, where it runs no handler."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def follow() -> None:
        while heard := os.read(reading, 1):
            # A command may have taken them over, as one that starts other processes.
            if signal.getsignal(heard[0]) is _on_signal:
                _interrupt_main_thread(heard[0])

    threading.Thread(target=follow, daemon=True, name="prefcli-signals").start()


def _interrupt_main_thread(number: int) -> None:
    """Some library swallows what the handler raises, and some waits for a process that has gone."""
    over = _done
    if _received is None and another_failed():
        _end()
    for _ in range(_TRIES):
        if _deferred or over.wait(_AGAIN):
            return
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    if is_main_process():
        os.write(2, f"{_nothing_saved()}\n".encode())
    _end(ExitCode.REQUEUE)


def _end(code: int = 128 + signal.SIGTERM) -> None:
    """Here and now: a sibling has said what went wrong, and what this one waits for won't come."""
    if is_screen():
        with suppress(OSError):
            os.write(stream().fileno(), _SHOW_CURSOR)
    os._exit(code)


def _in_child() -> None:
    """A pool ends its workers by SIGTERM, and they are to die of it."""
    if _listener is None:
        return
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
