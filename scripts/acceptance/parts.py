"""The parts in the order of their weight, and how long each may take. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Seconds on a GPU: at most, and without which it is not worth starting."""

    most: int
    least: int


PARTS = {
    "facts": Part(60, 10),
    "kernels": Part(70, 15),
    "methods": Part(100, 25),
    "signals": Part(110, 25),
    "sharded": Part(150, 30),
    "qlora": Part(100, 20),
    "speed": Part(420, 40),
    "memory": Part(70, 25),
    "profile": Part(80, 25),
}

TOGETHER = ("methods", "signals", "sharded", "qlora")
"""Parts that run at the same time: nothing in them is timed, and they wait more than they work."""
