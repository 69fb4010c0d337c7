"""Rows of scored completions: pairs by a rule, labels by thresholds, the best one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from prefcli.data.digests import row_key
from prefcli.formats.chat_columns import template_columns
from prefcli.recipe.sections import Pairs

UNFINISHED = "cut at pairs.max_new_tokens"
EMPTY = "empty"
REPEATED = "equal to another completion of the prompt"
UNSCORED = "without a score"
BETWEEN = "between the thresholds"
"""Reasons to drop a completion."""
TOO_FEW = "fewer than two distinct completions"
NONE_LEFT = "without a completion"
TIED = "equal scores"
MARGIN = "no difference of at least pairs.min_margin"
LENGTHS = "no two completions of similar length"
TOO_LOW = "no score of at least pairs.desirable_threshold"
"""Reasons to drop a prompt."""
_CURES = {
    UNFINISHED: "write pairs.unfinished=keep, or raise pairs.max_new_tokens and add --overwrite",
    UNSCORED: "correct the judge, which scored none of these",
    BETWEEN: "change the thresholds",
    TIED: "use a judge with finer scores",
    MARGIN: "lower pairs.min_margin",
    LENGTHS: "raise pairs.max_length_ratio",
    TOO_LOW: "lower pairs.desirable_threshold",
}
"""Reason to drop: what to do about it."""


@dataclass(frozen=True)
class Candidate:
    """A completion of a prompt with its score."""

    text: str
    length: int
    """In tokens, or in characters where tokens are not known."""
    ended: bool = True
    score: float | None = None


@dataclass
class ScoredPrompt:
    """A prompt with its columns, and its completions."""

    columns: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def key(self) -> int:
        """Equal for equal prompts."""
        return prompt_key(self.columns)

    def answer(self, i: int) -> Any:
        """Return a completion as it is in a row: text, or messages after messages."""
        text = self.candidates[i].text
        if isinstance(self.columns["prompt"], str):
            return text
        return [{"role": "assistant", "content": text}]


def prompt_key(columns: Mapping[str, Any]) -> int:
    """Return a number that is equal for equal prompts, whatever file they are from."""
    template = template_columns(columns)
    return row_key([columns["prompt"], template])


@dataclass
class Drops:
    """Counts of dropped completions and prompts, by reason."""

    completions: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Describe what is dropped."""
        return [
            f"{number:,} {what} dropped: {reason}"
            for what, reasons in (("completions", self.completions), ("prompts", self.prompts))
            for reason, number in reasons.items()
        ]

    def cure(self) -> str | None:
        """Return what to do about the reasons."""
        reasons = (*self.completions, *self.prompts)
        return "; ".join(_CURES[reason] for reason in reasons if reason in _CURES) or None


def usable(
    candidates: Sequence[Candidate], options: Pairs, drops: Drops | None = None
) -> list[int]:
    """Return the indices of distinct, finished completions with a text."""
    texts: set[str] = set()
    indices = []
    for i, candidate in enumerate(candidates):
        reason = None
        if not candidate.ended and options.unfinished == "drop":
            reason = UNFINISHED
        elif not candidate.text.strip():
            reason = EMPTY
        elif candidate.text in texts:
            reason = REPEATED
        else:
            texts.add(candidate.text)
            indices.append(i)
        if reason is not None and drops is not None:
            _count(drops.completions, reason)
    return indices


def make_rows(
    prompt: ScoredPrompt, options: Pairs, seed: int, drops: Drops
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one prompt; what is dropped is counted."""
    candidates = prompt.candidates
    distinct = usable(candidates, options, drops)
    scored = [i for i in distinct if candidates[i].score is not None]
    _count(drops.completions, UNSCORED, len(distinct) - len(scored))
    scores = {i: score for i in scored if (score := candidates[i].score) is not None}
    if options.kind == "pairs":
        pair = _pair(candidates, scores, options, row_key([seed, prompt.key]))
        if isinstance(pair, str):
            _count(drops.prompts, pair)
            return
        chosen, rejected = pair
        yield {
            **prompt.columns,
            "chosen": prompt.answer(chosen),
            "rejected": prompt.answer(rejected),
            "chosen_score": scores[chosen],
            "rejected_score": scores[rejected],
        }
        return
    if not scores:
        _count(drops.prompts, NONE_LEFT)
        return
    labels = {i: _label(score, options) for i, score in scores.items()}
    if options.kind == "labels":
        _count(drops.completions, BETWEEN, sum(label is None for label in labels.values()))
    else:
        best = max(scores, key=lambda i: scores[i])
        if labels[best] is False:
            _count(drops.prompts, TOO_LOW)
        labels = {best: labels[best] or None}
    for i, label in labels.items():
        if label is not None:
            kind = {"label": label} if options.kind == "labels" else {}
            yield {
                **prompt.columns,
                "completion": prompt.answer(i),
                **kind,
                "score": scores[i],
            }


def _pair(
    candidates: Sequence[Candidate], scores: Mapping[int, float], options: Pairs, seed: int
) -> tuple[int, int] | str:
    """Return (chosen, rejected), the first of equally good pairs, or the reason for none.

    seed: of a random pair.
    """
    if len(scores) < 2:
        return TOO_FEW
    ordered = [(i, j) for i, j in permutations(scores, 2) if scores[i] > scores[j]]
    if not ordered:
        return TIED
    apart = [(i, j) for i, j in ordered if scores[i] - scores[j] >= options.min_margin]
    if not apart:
        return MARGIN
    matched = [
        (i, j) for i, j in apart if _similar(candidates[i].length, candidates[j].length, options)
    ]
    if not matched:
        return LENGTHS
    if options.rule == "best_random":
        best = max((i for i, _ in matched), key=lambda i: scores[i])
        return random.Random(seed).choice([pair for pair in matched if pair[0] == best])
    return max(matched, key=lambda pair: scores[pair[0]] - scores[pair[1]])


def _similar(one: int, other: int, options: Pairs) -> bool:
    limit = options.max_length_ratio
    return limit is None or max(one, other) <= limit * min(one, other)


def _label(score: float, options: Pairs) -> bool | None:
    """Return whether a score is desirable; None between the thresholds."""
    high, low = options.desirable_threshold, options.undesirable_threshold
    if high is None or score >= high:
        return True
    return False if low is None or score <= low else None


def _count(counts: dict[str, int], reason: str, number: int = 1) -> None:
    if number:
        counts[reason] = counts.get(reason, 0) + number
