"""A part of the prompts of a split, drawn with a seed; the other part is the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from prefcli.data.digests import row_key
from prefcli.data.row_stats import prompt_of


@dataclass(frozen=True)
class PromptPart:
    """The held-out prompts of data.train, or the others."""

    share: float
    seed: int
    is_held_out: bool

    @property
    def note(self) -> str:
        share = f"{100 * self.share:.3g} % of the prompts of data.train"
        return f"{share}, drawn by data.eval.from_train" if self.is_held_out else f"without {share}"

    def select(self, rows: Dataset) -> Dataset:
        """Return the rows whose prompts are in this part, whatever source they are from."""
        return rows.select([i for i, row in enumerate(rows) if self._contains(row)])

    def _contains(self, row: Any) -> bool:
        # A hash is uniform, so it draws each prompt with the same chance, in any order of the rows.
        draw = (row_key([self.seed, prompt_of(row)]) % 2**32) / 2**32
        return (draw < self.share) == self.is_held_out


def prompt_parts(
    share: float | None, seed: int
) -> tuple[PromptPart, PromptPart] | tuple[None, None]:
    """Return the held-out part and the rest; none if data.eval has its own sources."""
    if share is None:
        return None, None
    return PromptPart(share, seed, True), PromptPart(share, seed, False)
