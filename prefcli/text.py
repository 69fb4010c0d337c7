"""LIGHT: small pieces of text that every part of prefcli prints in the same way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

_LONGEST = 300
"""Characters of a library's message that are shown."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return _line(error, 0)


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's message, or of its cause's message."""
    return _line(error.__cause__ or error, -1)


def _line(error: BaseException, index: int) -> str:
    lines = str(error).strip().splitlines()
    return lines[index].strip()[:_LONGEST] if lines else type(error).__name__


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 step, 2,000 steps."""
    return f"{number:,} {noun}{'s'[: number != 1]}"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return rows of cells as lines whose columns are aligned. right: columns aligned there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_bytes(size: float) -> str:
    """Format a number of bytes: 1.5 GiB, 20.0 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def format_duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def closest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate that a mistyped word probably means, if one is close enough.

    Of several that start with it, the first: adamw_torch for adamw.
    """
    import difflib  # needed for mistakes only

    candidates = list(candidates)
    if starts := [name for name in candidates if len(word) > 3 and name.startswith(word)]:
        return starts[0]
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the hint `did you mean X?` for the closest candidate, if one is close enough."""
    match = closest(word, candidates, cutoff)
    return f"did you mean {match}?" if match is not None else None
