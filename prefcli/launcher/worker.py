"""In a process that prefcli's own launcher started: it must not outlive the launcher."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress

LAUNCHER = "PREFCLI_LAUNCHER"
"""In the workers' environment: the launcher's process id."""

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def end_with_launcher() -> None:
    """A launcher killed by signal 9 can tell nobody, and its workers would train on, alone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    with suppress(AttributeError, OSError):  # elsewhere than on Linux
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != launcher:  # it was gone before
        os._exit(1)
