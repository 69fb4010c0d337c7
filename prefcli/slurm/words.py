"""Words of a shell, on one line each, whatever was typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

_PLAIN = frozenset(range(0x20, 0x7F)) - {*b"'\\"}


def quoted(word: str) -> str:
    """One word for bash. What has no place on a line is spelled out, as in $'a\\x0ab'."""
    if word.isprintable():
        return shlex.quote(word)
    spelled = (chr(b) if b in _PLAIN else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(spelled)}'"


def command_line(words: Iterable[str]) -> str:
    return " ".join(map(quoted, words))
