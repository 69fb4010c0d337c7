"""A run in a log: one aligned line a row of metrics, made for grep and awk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prefcli.console import say
from prefcli.health import Advice
from prefcli.metrics import Row, is_eval, is_tie, metric
from prefcli.training.progress.base import advice_line
from prefcli.training.progress.eta import Pace, duration

_NOTHING = "-"


class PlainProgress:
    """`step=10/63  loss=0.6931  ...`; a figure keeps its column for the whole run."""

    def __init__(self, watched: Sequence[str], in_evaluations: Sequence[str]) -> None:
        """watched: metrics in their order; in_evaluations: more of them for evaluation rows."""
        self._train = _Columns([*watched, "tokens_per_second"], "")
        self._eval = _Columns([*watched, *in_evaluations], "eval_")
        self._pace: Pace | None = None

    def open(self, pace: Pace, earlier: Iterable[Row]) -> None:
        self._pace = pace
        for row in earlier:
            self._columns(row).meet(row)

    def evaluating(self, batch: int, batches: int | None) -> None:
        """A log has no use for it."""

    def stepped(self) -> None:
        """As above."""

    def measured(self, row: Row) -> None:
        assert self._pace is not None
        total = self._pace.total
        cells = self._columns(row).cells(row)
        if not cells:
            return
        if not is_eval(row):
            left = self._pace.left(time.monotonic())
            cells.append(f"eta={_NOTHING if left is None else duration(left)}")
        step = f"step={int(row['step'] or 0)}/{total}"
        say("  ".join([step.ljust(len(f"step={total}/{total}")), *cells]).rstrip())

    def advised(self, advice: Advice) -> None:
        say(advice_line(advice))

    def close(self) -> None:
        """Nothing is open."""

    def _columns(self, row: Row) -> _Columns:
        return self._eval if is_eval(row) else self._train


class _Columns:
    """Those of one kind of row: in the order of `names`, a late one at the end."""

    def __init__(self, names: Sequence[str], prefix: str) -> None:
        self._names, self._prefix = names, prefix
        self._met: list[str] = []

    def meet(self, row: Row) -> None:
        here = [name for name in self._names if self._prefix + name in row]
        self._met += [name for name in here if name not in self._met]

    def cells(self, row: Row) -> list[str]:
        self.meet(row)
        return [self._cell(row, name) for name in self._met]

    def _cell(self, row: Row, name: str) -> str:
        key, shown = self._prefix + name, metric(name)
        blank = key not in row or is_tie(row, key)
        text = _NOTHING if blank else shown.format(row[key])
        return f"{self._prefix}{shown.label}={text.ljust(shown.width)}"
