"""Slurm's way to write a time limit."""

from __future__ import annotations

import re

from prefcli.errors import RecipeError

_FORMS = (
    r"(?P<minutes>\d+)",
    r"(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_SECONDS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}


def seconds(time: str) -> int:
    """Of minutes, MM:SS, HH:MM:SS or D-HH[:MM[:SS]]. Raises RecipeError for anything else."""
    found = next((match for form in _FORMS if (match := re.fullmatch(form, time, re.A))), None)
    total = sum(_SECONDS[unit] * int(n) for unit, n in found.groupdict("0").items()) if found else 0
    if total == 0:
        raise RecipeError(
            f"--time {time}: no time limit as Slurm writes it",
            hint="as in 04:00:00 (four hours), 1-12 (a day and twelve hours) or 90 (minutes)",
        )
    return total


def in_words(total: int) -> str:
    """14400 is 4 h: what was meant by 4:00 is seen to be 4 min."""
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, total = divmod(total, size)
        parts += [f"{count} {unit}"] if count else []
    return " ".join(parts)
