"""What both ways to show a run have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prefcli.health import LEVELS, Advice, Level
from prefcli.metrics import Row
from prefcli.training.progress.eta import Pace

LOUDNESS: dict[Level, str] = dict(zip(LEVELS, ("note", "warning", "stop"), strict=True))


class ProgressDisplay(Protocol):
    """Told of a run as it goes; the main process has one."""

    def open(self, pace: Pace, earlier: Iterable[Row]) -> None:
        """Training begins; `earlier` rows are those of the run that is resumed."""

    def evaluating(self, batch: int, batches: int | None) -> None: ...

    def stepped(self) -> None: ...

    def measured(self, row: Row) -> None: ...

    def advised(self, advice: Advice) -> None: ...

    def close(self) -> None:
        """Leave the terminal as any other program wants it. May be called twice."""


def advice_line(advice: Advice) -> str:
    return f"health: {LOUDNESS[advice.level]} at step {advice.step}: {advice}"
