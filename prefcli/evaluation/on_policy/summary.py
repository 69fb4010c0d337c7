"""The result of `prefcli pairs`, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefcli.evaluation.on_policy.pairing import ScoredPrompt
from prefcli.text import counted

ROWS_OF_PROMPTS = "rows of prompts"
"""What is dropped before anything is sampled."""
_NOUNS = {"pairs": "pair", "labels": "labelled row", "best": "demonstration"}


@dataclass
class Speed:
    """The work of this start and its time."""

    completions: int = 0
    tokens: int = 0
    sampling_seconds: float = 0.0
    judged: int = 0
    judging_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "tokens_per_second": _rate(self.tokens, self.sampling_seconds),
            "judged_per_second": _rate(self.judged, self.judging_seconds),
        }

    def line(self) -> str:
        """Describe the speed."""
        return (
            f"sampled {counted(self.completions, 'completion')} in "
            f"{self.sampling_seconds:.1f} s ({_rate(self.tokens, self.sampling_seconds):,.0f} "
            f"tokens/s), judged {self.judged:,} in {self.judging_seconds:.1f} s"
        )


def _rate(number: int, seconds: float) -> float:
    return number / seconds if seconds else 0.0


@dataclass(frozen=True)
class PairsSummary:
    """The result of `prefcli pairs`."""

    output: str
    kind: str
    judge: str
    prompts: int
    completions: int
    rows: int
    mean_score: float | None
    """Mean over all completions that have a score."""
    mean_best: float | None
    """Mean score of the best completion of each prompt."""
    mean_chosen: float | None
    mean_rejected: float | None
    labels: dict[str, int] | None
    """Labelled rows by label."""
    dropped: dict[str, dict[str, int]]
    """Counts by what is dropped (prompts and completions) and by reason."""
    speed: Speed = field(default_factory=Speed)

    @classmethod
    def of(
        cls,
        output: str,
        kind: str,
        judge: str,
        prompts: Sequence[ScoredPrompt],
        rows: Sequence[Mapping[str, Any]],
        dropped: Mapping[str, dict[str, int]],
        speed: Speed,
    ) -> PairsSummary:
        """Count the rows that were made of the prompts, and average their scores."""
        by_prompt = [[c.score for c in p.candidates if c.score is not None] for p in prompts]
        sides = ("chosen_score", "rejected_score") if kind == "pairs" else ()
        means = [_mean([row[side] for row in rows]) for side in sides] or [None, None]
        labels = [str(row["label"]).lower() for row in rows if kind == "labels"]
        return cls(
            output=output,
            kind=kind,
            judge=judge,
            prompts=len(prompts),
            completions=sum(len(prompt.candidates) for prompt in prompts),
            rows=len(rows),
            mean_score=_mean([score for scores in by_prompt for score in scores]),
            mean_best=_mean([max(scores) for scores in by_prompt if scores]),
            mean_chosen=means[0],
            mean_rejected=means[1],
            labels={name: labels.count(name) for name in ("true", "false")} if labels else None,
            dropped={what: reasons for what, reasons in dropped.items() if reasons},
            speed=speed,
        )

    def lines(self) -> list[str]:
        """Describe the result."""
        lines = [
            f"{number:,} {what} dropped: {reason}"
            for what, reasons in self.dropped.items()
            if what != ROWS_OF_PROMPTS  # printed before anything is sampled
            for reason, number in reasons.items()
        ]
        if self.mean_score is not None and self.mean_best is not None:
            lines.append(
                f"mean score {self.mean_score:+.3f}; of the best completion of each prompt "
                f"{self.mean_best:+.3f}"
            )
        if self.mean_chosen is not None and self.mean_rejected is not None:
            lines.append(
                f"mean score of chosen {self.mean_chosen:+.3f}, of rejected "
                f"{self.mean_rejected:+.3f}"
            )
        if self.labels is not None:
            lines.append(f"{self.labels['true']:,} desirable, {self.labels['false']:,} undesirable")
        lines.append(
            f"{counted(self.rows, _NOUNS[self.kind])} of {counted(self.prompts, 'prompt')} and "
            f"{counted(self.completions, 'completion')}, written to {self.output}"
        )
        if self.speed.completions or self.speed.judged:
            lines.append(self.speed.line())
        return [f"pairs: {line}" for line in lines]

    def as_dict(self) -> dict[str, Any]:
        return {**self.facts(), "speed": self.speed.as_dict()}

    def facts(self) -> dict[str, Any]:
        """Return what does not depend on the machine."""
        return {name: value for name, value in vars(self).items() if name != "speed"}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
