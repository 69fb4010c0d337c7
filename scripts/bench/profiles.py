"""Rows with the average lengths of prompts and answers of real data."""

from __future__ import annotations

import random

PROFILES = {"ultrafeedback-like": (150, 250), "long prompt": (700, 80), "hh-like": (150, 70)}
"""Average tokens of a prompt and of an answer."""

Row = tuple[list[int], list[int], list[int]]


def drawn(profile: str, vocabulary: int, count: int, seed: int, shrink: int = 1) -> list[Row]:
    """Draw (prompt, chosen, rejected) in token ids, 0.5 to 1.5 times as long as the profile's.

    shrink: divides the lengths of the profile.
    """
    prompt, answer = PROFILES[profile]
    draw = random.Random(f"{profile} {seed}")

    def tokens(average: int) -> list[int]:
        length = round(average / shrink * draw.uniform(0.5, 1.5))
        return [draw.randrange(3, vocabulary) for _ in range(length)]

    return [(tokens(prompt), tokens(answer), tokens(answer)) for _ in range(count)]
