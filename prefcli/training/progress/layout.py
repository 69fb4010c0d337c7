"""The live view as text, at any width; what draws it, and how often, is in live.py."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from rich.console import Console, ConsoleOptions
from rich.text import Text

from prefcli.health import Advice
from prefcli.metrics import Row, is_eval, is_tie, metric
from prefcli.training.progress.base import LOUDNESS
from prefcli.training.progress.eta import Pace, clock, duration, seconds_a_step
from prefcli.training.progress.sparkline import sparkline

_WIDE = 100
_MOST = 120
"""Beyond this, lines are harder to follow, and a terminal made narrower breaks them."""
_NAME, _CELL, _SHORTEST_TREND, _LONGEST_TREND = 24, 11, 8, 40
_LINES_OF_ADVICE = 6
_COLOURS = {"note": "cyan", "warn": "yellow", "stop": "bold red"}


class View:
    """Progress, the metrics that matter with their trend, the last evaluation and advice."""

    def __init__(
        self, title: str, watched: Sequence[str], in_evaluations: Sequence[str], pace: Pace
    ) -> None:
        self._title, self.pace = title, pace
        self._names = [*watched, *in_evaluations]
        self._trends: dict[str, list[float]] = {}
        self._tied_at_start: set[str] = set()
        self._last_train: Row = {}
        self._first_eval: Row = {}
        self._last_eval: Row = {}
        self._advice: Advice | None = None
        self._advices = 0
        self.doing = ""
        """What keeps the steps waiting."""

    def measured(self, row: Row) -> None:
        if is_eval(row):
            self._first_eval = self._first_eval or row
            self._last_eval = row
            return
        self._last_train = row
        for name in self._names:
            value = row.get(name)
            if value is None:
                continue
            if not is_tie(row, name):
                self._trends.setdefault(name, []).append(value)
            elif name not in self._trends:
                self._tied_at_start.add(name)

    def advised(self, advice: Advice) -> None:
        self._advice = advice
        self._advices += 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        # The last column stays free: some terminals break a line that fills it.
        width = min(options.max_width - 1, _MOST)
        plain = options.ascii_only
        parts = [
            [Text(), *self._progress(width, plain)],
            [*self._table(width, plain)],
            [*self._evaluation(width)] if width < _WIDE else [],
            [*self._last_advice(width)],
        ]
        # What a low terminal has no room for, in this order; it would be cut at the bottom.
        for least in (2, 1):
            if sum(map(len, parts)) >= options.size.height:
                parts[least] = []
        for line in chain.from_iterable(parts):
            line.truncate(width)
            line.no_wrap = True
            yield line

    def _progress(self, width: int, plain: bool) -> Iterator[Text]:
        pace, now = self.pace, time.monotonic()
        share = pace.step / pace.total if pace.total else 1.0
        head, tail = f"{self._title}  ", f"  {pace.step}/{pace.total}  {share:4.0%}"
        bar = max(4, min(60, width - len(head) - len(tail)))
        full = round(bar * share)
        marks = "#-" if plain else "━─"
        yield Text.assemble(
            (head, "bold"), (marks[0] * full, "green"), (marks[1] * (bar - full), "dim"), tail
        )
        left = pace.left(now)
        parts = [self.doing] if self.doing else []
        parts.append(f"{duration(now - pace.started)} gone")
        if left is not None and pace.step < pace.total:
            parts.append(f"{duration(left)} left")
        if pace.a_step is not None:
            parts.append(seconds_a_step(pace.a_step))
        speed, memory = (self._last_train.get(k) for k in ("tokens_per_second", "memory_gib"))
        if speed is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if memory is not None:
            parts.append(f"peak {memory:.1f} GiB")
        if left is not None and pace.step < pace.total:
            parts.append(f"ends about {clock(time.time() + left, time.time())}")
        yield Text("  ".join(_that_fit(parts, width, "  ")))
        yield Text()

    def _table(self, width: int, plain: bool) -> Iterator[Text]:
        wide = width >= _WIDE
        trend = width - _NAME - (5 if wide else 3) * _CELL - 2
        with_start = trend >= _SHORTEST_TREND
        if not with_start:
            trend += _CELL
        trend = min(trend, _LONGEST_TREND)
        heads = ["now", *(["at start"] if with_start else []), "change"]
        head = " " * _NAME + "".join(h.rjust(_CELL) for h in heads)
        head += "  " + "trend".ljust(trend)
        if wide and self._last_eval:
            head += f"eval {int(self._last_eval['step'] or 0)}".rjust(_CELL) + "at start".rjust(
                _CELL
            )
        names = [
            name
            for name in self._names
            if name in self._trends or (wide and self._in_eval(name)) or name in self._last_train
        ]
        if names:
            yield Text(head.rstrip(), "dim")
        for name in names:
            yield self._line(name, trend, plain, with_start=with_start, with_eval=wide)

    def _line(
        self, name: str, trend: int, plain: bool, *, with_start: bool, with_eval: bool
    ) -> Text:
        shown, values = metric(name), self._trends.get(name, [])
        now, start, change = "", "", ""
        if name in self._last_train:
            tie = is_tie(self._last_train, name)
            now = "tie" if tie else shown.format(self._last_train[name])
        if name in self._tied_at_start:
            start = "tie"
        elif values:
            start = shown.format(values[0])
            change = shown.format_change(values[0], values[-1]) if len(values) > 1 else ""
        line = Text(shown.title.ljust(_NAME))
        line.append(now.rjust(_CELL), "bold")
        if with_start:
            line.append(start.rjust(_CELL), "dim")
        line.append(change.rjust(_CELL))
        line.append("  " + sparkline(values, trend, ascii_only=plain).ljust(trend), "dim cyan")
        if with_eval and self._in_eval(name):
            line.append(self._eval_text(name, self._last_eval).rjust(_CELL), "bold")
            line.append(self._eval_text(name, self._first_eval).rjust(_CELL), "dim")
        line.rstrip()
        return line

    def _in_eval(self, name: str) -> bool:
        return f"eval_{name}" in self._last_eval

    @staticmethod
    def _eval_text(name: str, row: Row) -> str:
        key = f"eval_{name}"
        if key not in row:
            return ""
        return "tie" if is_tie(row, key) else metric(name).format(row[key])

    def _evaluation(self, width: int) -> Iterator[Text]:
        """Where the table has no room for it."""
        if not self._last_eval:
            return
        at_start = self._last_eval is self._first_eval
        parts = []
        for name in filter(self._in_eval, self._names):
            first = self._eval_text(name, self._first_eval)
            was = "" if at_start or first in ("", "tie") else f" ({first})"
            parts.append(f"{metric(name).label} {self._eval_text(name, self._last_eval)}{was}")
        head = f"eval at step {int(self._last_eval['step'] or 0)}"
        yield Text(head + ("" if at_start else " (at start)") + ":", "dim")
        while parts:
            fitting = _that_fit(parts, width - 2, "  ")
            yield Text("  " + "  ".join(fitting))
            parts = parts[len(fitting) :]

    def _last_advice(self, width: int) -> Iterator[Text]:
        advice = self._advice
        if advice is None:
            return
        yield Text()
        more = f" ({self._advices} so far)" if self._advices > 1 else ""
        text = f"{LOUDNESS[advice.level]} at step {advice.step}{more}: {advice}"
        lines = textwrap.wrap(text, width, max_lines=_LINES_OF_ADVICE, placeholder=" ...")
        for line in lines:
            yield Text(line, _COLOURS[advice.level])


def _that_fit(parts: Sequence[str], width: int, between: str) -> list[str]:
    """As many of the first as fit into a line, and at least one."""
    fitting: list[str] = []
    for part in parts:
        if fitting and len(between.join([*fitting, part])) > width:
            break
        fitting.append(part)
    return fitting
