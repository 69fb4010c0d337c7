"""What prefcli says to a person: plain lines, on the main process only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

from prefcli.secrets import redact

_json_on_stdout = False
_above: Callable[[str], None] | None = None


def keep_stdout_for_json(wanted: bool) -> None:
    """With --json, standard output is one JSON document; what is said goes to standard error."""
    global _json_on_stdout
    _json_on_stdout = wanted


def is_main_process() -> bool:
    """Of all processes a launcher started, the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def stream() -> TextIO:
    return sys.stderr if _json_on_stdout else sys.stdout


def is_screen() -> bool:
    """Can it be drawn on? Elsewhere (a pipe, a file, NO_COLOR, a dumb terminal) lines are plain."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb", "unknown")
    return stream().isatty() and not plain


def print_above(view: Callable[[str], None] | None) -> None:
    """While something is drawn at the bottom, what is said goes through it; None ends that."""
    global _above
    _above = view


def say(*lines: str) -> None:
    """Print, flushed at once, so that a cluster log is complete when the job is killed."""
    if not lines or not is_main_process():
        return
    text = redact("\n".join(lines))
    if _above is not None:
        _above(text)
        return
    try:
        print(text, file=stream(), flush=True)
    except BrokenPipeError:
        # Whoever read along is gone (`| head`); the run is not over for that.
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def document(text: str) -> None:
    """A result for a script: on standard output, once a run."""
    if is_main_process():
        try:
            print(redact(text), flush=True)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def warn(message: str) -> None:
    say(f"warning: {message}")


def amount(size: float) -> str:
    """Bytes, for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
