"""What every health rule is: its thresholds as written in a recipe, and what it says of a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from prefcli.options import Options

Level = Literal["note", "warn", "stop"]
LEVELS: tuple[Level, ...] = ("note", "warn", "stop")

Row = Mapping[str, float | None]
"""A line of metrics.jsonl: `step`, `seconds` and the metrics; null stands for not finite."""


@dataclass(frozen=True)
class Facts:
    """What a rule must know of a run beside its metrics."""

    method: str
    steps: int
    """Planned optimizer steps."""
    warmup: int = 0
    """Steps until the learning rate is reached."""
    has_reference: bool = True
    """Policy and reference agree at the start, so margins and accuracies say nothing there."""
    mixes_sft: bool = False

    @property
    def strength(self) -> str:
        """The recipe's key that holds the policy to its reference or weighs the preference."""
        return "orpo.lambda" if self.method == "orpo" else f"{self.method}.beta"


@dataclass(frozen=True)
class Advice:
    """One line to the person who watches: what is seen, what it usually means, what to change."""

    check: str
    level: Level
    step: int
    seen: str
    means: str
    change: str

    def __str__(self) -> str:
        return f"{self.seen}: {self.means}; {self.change}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "message": str(self)}


@dataclass
class History:
    """The metric rows of a run so far, in order; rows of evaluations apart."""

    train: list[Row] = field(default_factory=list)
    eval: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        (self.eval if is_eval(row) else self.train).append(row)

    def series(self, key: str, last: int | None = None) -> list[float]:
        """The finite values of a metric in their order, of evaluations for an `eval_` key."""
        rows: Sequence[Row] = self.eval if key.startswith("eval_") else self.train
        values = [value for row in rows if (value := row.get(key)) is not None]
        return values[-last:] if last else values

    def first(self, key: str) -> float | None:
        """Its value at the start: the first train row is of the policy before its first update."""
        return next(iter(self.series(key)), None)

    @property
    def step(self) -> int:
        rows = [rows[-1] for rows in (self.train, self.eval) if rows]
        return max((int(row["step"] or 0) for row in rows), default=0)


def is_eval(row: Row) -> bool:
    return any(key.startswith("eval_") for key in row)


class Check(Options):
    """One rule. The docstring tells it and its source; the fields are its thresholds."""

    name: ClassVar[str]
    on: Literal["note", "warn", "stop", "off"] = "warn"
    """How loud: a note, a warning, the end of the run with exit code 5, or nothing."""

    @abstractmethod
    def look(self, history: History, facts: Facts) -> Advice | None:
        """What there is to say of the newest row, if anything."""
