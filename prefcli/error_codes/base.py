"""The shape of an error code's explanation."""

from __future__ import annotations

from typing import NamedTuple


class ErrorCode(NamedTuple):
    """One kind of mistake that a user can fix."""

    code: str
    """Three letters and three digits: RCP001."""
    name: str
    """A few words, in lower case and with hyphens: unknown-key."""
    meaning: str
    """What prefcli found, and why it stops or warns. One to three sentences."""
    example: str
    """A recipe, a row or a command that causes it."""
    cure: str
    """What to do, in the imperative."""
