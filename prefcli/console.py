"""What prefcli says to a person: plain lines, on the main process only."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_out: TextIO | None = None


def human_output_to_stderr() -> None:
    """For --json: standard output is then one JSON document and nothing else."""
    global _out
    _out = sys.stderr


def stream() -> TextIO:
    return _out or sys.stdout


def say(*lines: str) -> None:
    """Print, flushed at once, so that a cluster log is complete when the job is killed."""
    if os.environ.get("RANK", "0") == "0":
        print(*lines, sep="\n", file=stream(), flush=True)


def warn(message: str) -> None:
    say(f"warning: {message}")
