"""The quality of pairs: labels that a model contradicts, easy pairs, and hard ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from prefcli.data.findings import join_places, percent
from prefcli.data.split import Split
from prefcli.evaluation.bootstrap import LEVEL, Ints
from prefcli.evaluation.label_noise import LabelNoise, estimate_noise
from prefcli.evaluation.scored_pairs import ScoredPairs, score_pairs
from prefcli.methods import Method
from prefcli.recipe import Recipe
from prefcli.text import counted

PairKind = Literal["contradicted", "easy", "hard"]
KINDS: tuple[PairKind, ...] = get_args(PairKind)

_SWAPPED = 0.5
"""Probability of a swapped label above which a pair is contradicted."""
_EASY = 0.99
"""Probability that chosen is better, by the model alone, from which a pair is easy."""
_HARD = 0.75
"""Probability below which the model does not know which response is better."""
_SHOWN = 3
_LISTED = 10

_MEANINGS: dict[PairKind, str] = {
    "contradicted": "the label is probably swapped",
    "easy": f"the model is {percent(_EASY)} sure of the label or more, so that it can learn little",
    "hard": f"the model is less than {percent(_HARD)} sure of either response",
}


@dataclass(frozen=True)
class PairQuality:
    """The pairs of a split, judged by their margins."""

    split: Split
    pairs: ScoredPairs
    noise: LabelNoise

    @cached_property
    def kinds(self) -> dict[PairKind, Ints]:
        """The pairs of each kind as indices of `pairs`, the clearest first."""
        swapped, right, margins = self.noise.swapped, self.noise.right, self.pairs.margins
        contradicted = (swapped > _SWAPPED) & self.noise.is_identified
        hard = (np.maximum(right, 1 - right) < _HARD) & ~contradicted
        easy = (right >= _EASY) & ~contradicted
        return {
            "contradicted": _ordered(contradicted, -swapped),
            "easy": _ordered(easy, -margins),
            "hard": _ordered(hard, np.abs(margins)),
        }

    def rows(self, kind: PairKind) -> Ints:
        """Return the pairs of a kind as rows of the split, the clearest first."""
        rows: Ints = self.pairs.rows[self.kinds[kind]]
        return rows

    @property
    def expected_swapped(self) -> float:
        """Expected number of swapped labels among the contradicted pairs."""
        return float(self.noise.swapped[self.kinds["contradicted"]].sum())

    def lines(self) -> list[str]:
        """Describe the result."""
        pairs = self.pairs
        lines = [f"score: {description}" for description in pairs.models]
        if pairs.trained_on:
            lines.append(
                f"{counted(pairs.trained_on, 'pair')} not judged: each model was trained on their "
                "prompts"
            )
        if pairs.too_long:
            lines.append(
                f"{counted(pairs.too_long, 'pair')} not judged: the prompt fills data.max_length"
            )
        return [*lines, self._noise_line(), *self._kind_lines()]

    def _noise_line(self) -> str:
        share, agreed = self.noise.share, percent(self.noise.accuracy)
        judged = f"the model agrees with {agreed} of {counted(len(self.pairs.rows), 'label')}"
        if share.value is None or share.low is None or share.high is None:
            return f"label noise: not estimated from fewer than two prompts ({judged})"
        interval = f"[{percent(share.low)}, {percent(share.high)}]"
        if not self.noise.is_identified:
            return (
                f"label noise: between {percent(share.low)} and {percent(share.high)}, which says "
                f"little ({judged}); score with a model that separates the pairs better"
            )
        doubt = "; the interval contains 0" if share.low == 0 else ""
        return (
            f"label noise: {percent(share.value)} {interval} of the labels are swapped "
            f"({judged}){doubt}"
        )

    def _kind_lines(self) -> Iterator[str]:
        total = len(self.pairs.rows)
        for kind, at in self.kinds.items():
            places = join_places([self.split.place(int(row)) for row in self.rows(kind)[:_SHOWN]])
            note = f"; {self.expected_swapped:.0f} of them are swapped by the estimate"
            yield (
                f"{kind}: {counted(len(at), 'pair')} ({percent(len(at) / total)}): "
                f"{_MEANINGS[kind]}{note if kind == 'contradicted' and len(at) else ''}"
                f"{f'; first: {places}' if places else ''}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data: all contradicted pairs, and the first of other kinds."""
        noise = self.noise
        return {
            "models": self.pairs.models,
            "pairs": len(self.pairs.rows),
            "trained_on": self.pairs.trained_on,
            "too_long": self.pairs.too_long,
            "accuracy": noise.accuracy,
            "label_noise": {
                **vars(noise.share),
                "level": LEVEL,
                "is_identified": noise.is_identified,
            },
            "agreement": [part._asdict() for part in noise.agreements()],
            "expected_swapped": self.expected_swapped,
            "kinds": {
                kind: {
                    "count": len(at),
                    "meaning": _MEANINGS[kind],
                    "rows": [self._row(int(i)) for i in (at if kind == KINDS[0] else at[:_LISTED])],
                }
                for kind, at in self.kinds.items()
            },
        }

    def _row(self, at: int) -> dict[str, Any]:
        return {
            "place": self.split.place(int(self.pairs.rows[at])),
            "margin": float(self.pairs.margins[at]),
            "swapped": float(self.noise.swapped[at]),
        }


def judge_pairs(
    recipe: Recipe,
    method: Method,
    split: Split,
    *,
    models: Sequence[str] = (),
    reward_model: str | None = None,
) -> PairQuality:
    """Score the pairs of a split and judge them; see `score_pairs`."""
    pairs = score_pairs(recipe, method, split, models=models, reward_model=reward_model)
    return PairQuality(split, pairs, estimate_noise(pairs.margins, pairs.prompts))


def _ordered(mask: Any, keys: Any) -> Ints:
    """Return the indices of a mask in ascending order of their keys."""
    indices = np.flatnonzero(mask)
    ordered: Ints = indices[np.argsort(keys[indices], kind="stable")]
    return ordered
