"""Entry point of `python -m prefcli`, which torchrun and accelerate also start on every rank."""

from __future__ import annotations

import atexit
import os
import sys

from prefcli import first_failure
from prefcli.cli import main
from prefcli.launcher.signal_forwarding import end_with_launcher


def exit_now(code: int) -> None:
    """End a launched process at once: destroying its process group can hang."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with_launcher()
    try:
        main()
    except SystemExit as stop:
        if first_failure.is_distributed() and isinstance(stop.code, int | None):
            exit_now(stop.code or 0)
        raise
