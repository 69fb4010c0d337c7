"""A judge for tests of RLOO."""

from __future__ import annotations

RLOO = {
    "rloo": {"num_generations": 2, "max_completion_length": 8},
    "judge": {"function": {"name": "tests.support.judge:count_vowels"}},
}
"""Sections of a recipe for rloo on a tiny model."""


def count_vowels(prompts, completions):
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]
