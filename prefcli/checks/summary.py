"""All that a run was told, in a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefcli.checks.base import LEVELS

_ORDER: tuple[str, ...] = LEVELS


def summary(advice: Iterable[Mapping[str, Any]]) -> str:
    """Of the lines of health.jsonl: how many rules spoke, each counted where it was loudest."""
    loudest: dict[str, str] = {}
    for each in advice:
        check, level = str(each["check"]), str(each["level"])
        if check not in loudest or _ORDER.index(level) > _ORDER.index(loudest[check]):
            loudest[check] = level
    if not loudest:
        return "health: nothing to report"
    parts = []
    for level in reversed(LEVELS):
        names = [check for check, found in loudest.items() if found == level]
        if names and level == "stop":
            parts.append(f"stopped by {', '.join(names)}")
        elif names:
            word = "warning" if level == "warn" else "note"
            parts.append(f"{len(names)} {word}{'s' * (len(names) > 1)} ({', '.join(names)})")
    if "stop" not in loudest.values():
        parts.append("nothing stopped")
    return f"health: {', '.join(parts)}"
