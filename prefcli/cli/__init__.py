"""Every command: parse, call one function, print, choose the exit code."""
# ruff: noqa: E402

import os
import signal
import threading
from types import FrameType


def _interrupted(number: int, frame: FrameType | None) -> None:
    os._exit(130)  # 128 + SIGINT, as in shells


# Ctrl-C during the imports has nothing to clean up, and would show a traceback.
_in_main_thread = threading.current_thread() is threading.main_thread()
_before = signal.signal(signal.SIGINT, _interrupted) if _in_main_thread else None

from prefcli.cli.main import main

if _in_main_thread:
    signal.signal(signal.SIGINT, _before)

__all__ = ["main"]
