"""Progress in a log: one aligned line per row of metrics, for grep and awk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prefcli.console import say
from prefcli.health import Advice
from prefcli.metrics import EVAL_PREFIX, Row, is_eval, is_tie, metric
from prefcli.text import format_duration
from prefcli.training.progress.eta import Pace

_MISSING = "-"


class PlainProgress:
    """Lines such as `step=10/63  loss=0.6931  ...`, in which a metric keeps its column."""

    def __init__(self, watched: Sequence[str], in_evaluations: Sequence[str]) -> None:
        """watched: metrics in order; in_evaluations: those that only evaluation rows show."""
        self._train = _Columns([*watched, "tokens_per_second"], "")
        self._eval = _Columns([*watched, *in_evaluations], EVAL_PREFIX)
        self._pace: Pace | None = None

    def start(self, pace: Pace, rows: Iterable[Row]) -> None:
        self._pace = pace
        for row in rows:
            self._columns(row).add(row)

    def show_eval_batch(self, batch: int, batches: int | None) -> None:
        """Do nothing: a log shows evaluations when they are done."""

    def show_step(self) -> None:
        """Do nothing: a log shows logging steps."""

    def show_row(self, row: Row) -> None:
        assert self._pace is not None, "start comes first"
        total = self._pace.total
        cells = self._columns(row).cells(row)
        if not cells:
            return
        if not is_eval(row):
            seconds = self._pace.remaining(time.monotonic())
            cells.append(f"eta={_MISSING if seconds is None else format_duration(seconds)}")
        step = f"step={int(row['step'] or 0)}/{total}"
        say("  ".join([step.ljust(len(f"step={total}/{total}")), *cells]).rstrip())

    def show_advice(self, advice: Advice) -> None:
        say(advice.as_line())

    def stop(self) -> None:
        """Do nothing: nothing is open."""

    def _columns(self, row: Row) -> _Columns:
        return self._eval if is_eval(row) else self._train


class _Columns:
    """The columns of one kind of row, in order; metrics that come later are added at the end."""

    def __init__(self, names: Sequence[str], prefix: str) -> None:
        self._names, self._prefix = names, prefix
        self._columns: list[str] = []

    def add(self, row: Row) -> None:
        measured = [name for name in self._names if self._prefix + name in row]
        self._columns += [name for name in measured if name not in self._columns]

    def cells(self, row: Row) -> list[str]:
        self.add(row)
        return [self._cell(row, name) for name in self._columns]

    def _cell(self, row: Row, name: str) -> str:
        key, entry = self._prefix + name, metric(name)
        missing = key not in row or is_tie(row, key)
        text = _MISSING if missing else entry.format(row[key])
        return f"{self._prefix}{entry.label}={text.ljust(entry.width)}"
