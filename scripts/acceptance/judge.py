"""A judge for rloo on made-up tokens, which are words such as w17."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COUNT_EVEN = f"{Path(__file__).resolve()}:count_even"
"""Name of the function in a recipe."""


def count_even(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Count the words that end with an even digit."""
    return [float(sum(w[-1] in "02468" for w in text.split())) for text in completions]
