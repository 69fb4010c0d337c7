"""`python -m prefcli`; also the entry that torchrun and accelerate start on every rank."""

from __future__ import annotations

import atexit
import os
import sys

from prefcli import first_failure
from prefcli.cli import main
from prefcli.launcher.worker import end_with_launcher


def leave(code: int) -> None:
    """End a launcher's process here: taking its process group apart can wait for ever."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with_launcher()
    try:
        main()
    except SystemExit as stop:
        if first_failure.has_siblings() and isinstance(stop.code, int | None):
            leave(stop.code or 0)
        raise
