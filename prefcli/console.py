"""Output for people: plain lines, printed by the main process only."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

from prefcli.errors import Problem, RecipeError
from prefcli.secrets import redact

_json_on_stdout = False
_above: Callable[[str], None] | None = None


def keep_stdout_for_json(enabled: bool) -> None:
    """Send lines to standard error, since --json prints one JSON document to standard output."""
    global _json_on_stdout
    _json_on_stdout = enabled


def is_main_process() -> bool:
    """Return whether this is rank 0, the only process that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def stream() -> TextIO:
    """Return the stream that lines go to."""
    return sys.stderr if _json_on_stdout else sys.stdout


def is_screen() -> bool:
    """Return whether output is a terminal that can be redrawn, and NO_COLOR is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb", "unknown")
    return stream().isatty() and not plain


def print_above(view: Callable[[str], None] | None) -> None:
    """Print lines above a live view; None returns to plain printing."""
    global _above
    _above = view


def visible(text: object) -> str:
    r"""Return text with control characters and text-direction marks escaped: \x1b, \u202e.

    Lone surrogates, which a file cannot hold, are escaped too.
    """
    return "".join(c if c in "\n\t" or c == " " or _is_shown(c) else _escape(c) for c in str(text))


def _is_shown(character: str) -> bool:
    # Cc is control, Cs surrogates, Cf format; emoji and many scripts need the Cf joiners.
    return character in "\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def say(*lines: str) -> None:
    """Print lines and flush, so that a cluster log is complete when the job is killed."""
    if not lines or not is_main_process():
        return
    text = redact(visible("\n".join(lines)))
    if _above is not None:
        _above(text)
        return
    try:
        print(text, file=stream(), flush=True)
    except BrokenPipeError:
        # The reader is gone (`| head`), which must not end the run.
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        _drop_line(error)


def document(text: str) -> None:
    """Print the result of a command to standard output. Raises RecipeError if that fails."""
    if is_main_process():
        try:
            print(redact(visible(text)), flush=True)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            _drop_unwritten()
            raise RecipeError(_unwritable(error)) from None


def output_problem() -> Problem | None:
    """Return why standard output cannot be written; None if an empty line arrives."""
    try:
        print(flush=True)
    except OSError as error:
        _drop_unwritten()
        return _unwritable(error)
    return None


def _unwritable(error: OSError) -> Problem:
    return Problem(
        f"can't write to standard output: {error.strerror}",
        hint="send it to a file on a disk with free space",
        code="ENV061",
    )


def print_error(text: str) -> None:
    """Print to standard error, if that is possible."""
    try:
        print(redact(visible(text)), end="", file=sys.stderr, flush=True)
    except OSError:
        _drop_unwritten()


_warned_of_dropped_lines = False


def _drop_line(error: OSError) -> None:
    """Drop a line that the log cannot take, e.g. as its disk is full; the run continues."""
    global _warned_of_dropped_lines
    _drop_unwritten()
    if not _warned_of_dropped_lines:
        _warned_of_dropped_lines = True
        print_error(f"warning: lines of the log are dropped: {error.strerror}\n")


def _drop_unwritten() -> None:
    """Replace streams with text that could not be written, which Python would try again to write.

    The new ones have the same files, whose disks may have room later.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        try:
            old.flush()
        except OSError:
            handle = os.dup(old.fileno())
            new = open(handle, "w", encoding="utf-8", errors=old.errors)  # noqa: SIM115
            setattr(sys, name, new)


def warn(message: str) -> None:
    """Print one line that starts with `warning:`."""
    say(f"warning: {message}")
