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

from prefcli.console import is_screen, stream
from prefcli.errors import PreemptedError, PrefcliError
from prefcli.siblings import another_failed, are_there

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SHOW_CURSOR = b"\x1b[?25h"

_asked: str | None = None
_held = False
_listener: int | None = None
"""The process that listens; what it forks does not."""


class Stop(BaseException):
    """Ends the command. No Exception: libraries take those for errors of theirs, and go on."""


class BreakOff(BaseException):
    """Ends what only looks at the weights (an evaluation, an answer), so that they can be saved."""


def listen() -> None:
    """From now on a signal has its say. For the main thread."""
    global _asked, _held, _listener
    _asked, _held = None, False
    for number in _SIGNALS:
        signal.signal(number, _on_signal)
    if are_there() and _listener != os.getpid():
        _follow_siblings()
    _listener = os.getpid()


def deafen() -> None:
    """The exit code is settled, and no signal changes it while the interpreter cleans up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> str | None:
    """The name of the signal that came first, if one did."""
    return _asked


def agree() -> None:
    """Another process was asked, so this one is as well."""
    global _asked
    _asked = _asked or "another process was asked to stop"


def held() -> bool:
    return _held


def hold() -> None:
    """From now on a signal is remembered, and ends nothing by itself. Raises Stop if one came."""
    global _held
    if _asked is not None and not _held:
        raise Stop
    _held = True


@contextmanager
def as_error() -> Iterator[None]:
    """Stop as a PreemptedError, and so what a library made of it on the way."""
    try:
        yield
    except Stop:
        raise _nothing_saved() from None
    except PrefcliError:
        raise
    except Exception:
        if _asked is None or _held:
            raise
        raise _nothing_saved() from None


def _nothing_saved() -> PreemptedError:
    return PreemptedError(
        f"pre-empted ({_asked}) before a step was trained: nothing was to be saved; "
        "the same command goes on"
    )


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked
    if _listener != os.getpid():
        os._exit(128 + number)  # forked by a thread, which could not set its handlers back
    if _asked is not None:
        return
    if another_failed():
        _end()
    _asked = signal.Signals(number).name
    if not _held:
        raise Stop


def _follow_siblings() -> None:
    """A process that waits, inside a library, for one that has failed runs no handler of Python's.

    Its launcher's signal still reaches this pipe, and a thread that reads it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def follow() -> None:
        while os.read(reading, 1):
            if _asked is None and another_failed():
                _end()

    threading.Thread(target=follow, daemon=True, name="prefcli-siblings").start()


def _end() -> None:
    """Here and now: a sibling has said what went wrong, and what this one waits for won't come."""
    if is_screen():
        with suppress(OSError):
            os.write(stream().fileno(), _SHOW_CURSOR)
    os._exit(128 + signal.SIGTERM)


def _in_child() -> None:
    """A pool ends its workers by SIGTERM, and they are to die of it."""
    if _listener is None:
        return
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
