"""Lengths of prompts and answers as real data has them, on average."""

from __future__ import annotations

import random

PROFILES = {"ultrafeedback-like": (150, 250), "long prompt": (700, 80), "hh-like": (150, 70)}
"""Tokens of a prompt and of an answer, on average."""

Row = tuple[list[int], list[int], list[int]]


def drawn(profile: str, vocabulary: int, count: int, seed: int, shrink: int = 1) -> list[Row]:
    """(prompt, chosen, rejected) in token ids; lengths spread by a half around the profile's.

    shrink: how many times shorter than the profile's.
    """
    prompt, answer = PROFILES[profile]
    draw = random.Random(f"{profile} {seed}")

    def tokens(average: int) -> list[int]:
        length = round(average / shrink * draw.uniform(0.5, 1.5))
        return [draw.randrange(3, vocabulary) for _ in range(length)]

    return [(tokens(prompt), tokens(answer), tokens(answer)) for _ in range(count)]
