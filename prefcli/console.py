"""Output for people, by the main process only: plain lines, with colours on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from typing import TextIO

from prefcli.errors import Problem, RecipeError
from prefcli.secrets import redact

_json_on_stdout = False
_verbose = False
_above: Callable[[str], None] | None = None


def keep_stdout_for_json(enabled: bool) -> None:
    """Send lines to standard error, since --json prints one JSON document to standard output."""
    global _json_on_stdout
    _json_on_stdout = enabled


def show_details(enabled: bool) -> None:
    """Print the details of a run's start on a terminal, too; a log always has them."""
    global _verbose
    _verbose = enabled


def is_main_process() -> bool:
    """Return whether this is rank 0, the only process that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def stream() -> TextIO:
    """Return the stream that lines go to."""
    return sys.stderr if _json_on_stdout else sys.stdout


def is_screen() -> bool:
    """Return whether output is a terminal that can be redrawn."""
    return _is_terminal(stream())


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def print_above(view: Callable[[str], None] | None) -> None:
    """Print lines above a live view; None returns to plain printing."""
    global _above
    _above = view


def has_live_view() -> bool:
    """Return whether a live view is drawn at the bottom of the terminal."""
    return _above is not None


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
    text = _shown_on(stream(), redact(visible("\n".join(lines))))
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


def say_brief(brief: Iterable[str], complete: Iterable[str]) -> None:
    """Print the brief lines on a terminal without -v, and the complete ones elsewhere."""
    say(*(brief if is_screen() and not _verbose else complete))


def detail(*lines: str) -> None:
    """Print lines that a terminal shows only with -v."""
    say_brief((), lines)


_LABEL = re.compile(r"(?P<label>[a-z][a-z/-]*( [a-z0-9-]+){0,2}):(?= |$)", re.IGNORECASE)
_STYLES = {
    "error": "1;31",
    "warning": "33",
    "note": "36",
    "done": "1;32",
    "next": "1",
}
"""ANSI codes by the first word of a line; another label is bold."""


def _shown_on(file: TextIO, text: str) -> str:
    """Return text with words kept whole and with colours, if the file is a terminal.

    NO_COLOR takes the colours (no-color.org).
    """
    if not _is_terminal(file):
        return text
    width = shutil.get_terminal_size().columns
    lines = [part for line in text.split("\n") for part in _wrapped(line, width)]
    return "\n".join(lines if os.environ.get("NO_COLOR") else map(_coloured, lines))


def _wrapped(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _coloured(line: str) -> str:
    match = _LABEL.match(line)
    if match is not None:
        style = _STYLES.get(match["label"], "1")
        return f"\x1b[{style}m{match[0]}\x1b[0m{line[match.end() :]}"
    if line.startswith("    -> "):
        return f"    \x1b[36m->\x1b[0m{line[6:]}"
    return line


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
        shown = _shown_on(sys.stderr, redact(visible(text)))
        print(shown, end="", file=sys.stderr, flush=True)
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
