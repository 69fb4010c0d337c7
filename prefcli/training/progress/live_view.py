"""The live view as a rich renderable; `rich_live.py` draws it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from prefcli.health import LEVEL_NAMES, Advice
from prefcli.metrics import EVAL_PREFIX, Row, is_eval, is_tie, metric
from prefcli.text import format_duration
from prefcli.training.progress.eta import Pace, format_clock, format_step_time

_WIDE = 100
"""Columns from which the table includes evaluations."""
_NARROW = 70
"""Columns below which it omits the values at the start."""
_TINY = 56
"""Columns below which it omits the changes, too."""
_MAX_WIDTH = 120
"""Longer lines are hard to follow."""
_ADVICE_LINES = 6
_COLOURS = {"note": "cyan", "warn": "yellow", "stop": "bold red"}


class LiveView:
    """Progress, the watched metrics with their trend, the last evaluation and the last advice."""

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
        self._advice: list[Advice] = []
        self.activity = ""
        """What interrupts training, such as an evaluation."""

    def add_row(self, row: Row) -> None:
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

    def add_advice(self, advice: Advice) -> None:
        self._advice.append(advice)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        # Some terminals wrap a line that fills the last column.
        options = options.update(width=min(options.max_width - 1, _MAX_WIDTH), height=None)
        wide = options.max_width >= _WIDE
        parts = [
            self._progress(options.max_width),
            self._table(options.max_width),
            Group() if wide else self._evaluation(),
            self._last_advice(console, options),
        ]
        blocks = [console.render_lines(part, options, pad=False) for part in parts]
        # A low terminal has no room for evaluations, then for the table.
        for at in (2, 1):
            if sum(map(len, blocks)) >= console.height:
                blocks[at] = []
        for block in blocks:
            for line in block:
                yield from line
                yield Segment.line()

    def _progress(self, width: int) -> RenderableType:
        pace, now = self.pace, time.monotonic()
        share = pace.step / pace.total if pace.total else 1.0
        head = Table.grid(padding=(0, 2, 0, 0), expand=True)
        head.add_column(style="bold", no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True)
        bar = ProgressBar(
            total=max(pace.total, 1), completed=pace.step, complete_style="green", width=None
        )
        head.add_row(self._title, bar, f"{pace.step}/{pace.total}", f"{share:.0%}")
        remaining = pace.remaining(now)
        facts = [self.activity] if self.activity else []
        facts.append(f"{format_duration(now - pace.started)} elapsed")
        if remaining is not None and pace.step < pace.total:
            facts.append(f"{format_duration(remaining)} left")
        if pace.seconds_per_step is not None:
            facts.append(format_step_time(pace.seconds_per_step))
        speed, memory = (self._last_train.get(k) for k in ("tokens_per_second", "memory_gib"))
        if speed is not None:
            facts.append(f"{speed:,.0f} tokens/s")
        if memory is not None:
            facts.append(f"peak {memory:.1f} GiB")
        if remaining is not None and pace.step < pace.total:
            facts.append(f"ends at about {format_clock(time.time() + remaining, time.time())}")
        while len("  ".join(facts)) > width and len(facts) > 1:
            facts.pop()
        return Group(Text(), head, Text("  ".join(facts), no_wrap=True), Text())

    def _table(self, width: int) -> RenderableType:
        wide, with_start, with_change = width >= _WIDE, width >= _NARROW, width >= _TINY
        names = [
            name
            for name in self._names
            if name in self._trends or (wide and self._in_eval(name)) or name in self._last_train
        ]
        if not names:
            return Group()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")

        def add_number(header: str, style: str = "") -> None:
            table.add_column(header, justify="right", style=style, no_wrap=True, min_width=9)

        table.add_column(no_wrap=True)
        add_number("now", "bold")
        if with_start:
            add_number("at start", "dim")
        if with_change:
            add_number("change")
        table.add_column("trend", style="dim cyan")  # rich shrinks it first, as it may wrap
        if wide and self._last_eval:
            add_number(f"eval {int(self._last_eval['step'] or 0)}", "bold")
            add_number("at start", "dim")
        for name in names:
            now, start, change = self._values(name)
            cells: list[RenderableType] = [metric(name).title, now]
            cells += [*[start] * with_start, *[change] * with_change]
            cells.append(Sparkline(self._trends.get(name, [])))
            if wide and self._last_eval:
                cells += [self._eval_text(name, row) for row in (self._last_eval, self._first_eval)]
            table.add_row(*cells)
        return table

    def _values(self, name: str) -> tuple[str, str, str]:
        """Return (now, at start, change) of a training metric."""
        entry, values = metric(name), self._trends.get(name, [])
        now, start, change = "", "", ""
        if name in self._last_train:
            tie = is_tie(self._last_train, name)
            now = "tie" if tie else entry.format(self._last_train[name])
        if name in self._tied_at_start:
            start = "tie"
        elif values:
            start = entry.format(values[0])
            change = entry.format_change(values[0], values[-1]) if len(values) > 1 else ""
        return now, start, change

    def _in_eval(self, name: str) -> bool:
        return EVAL_PREFIX + name in self._last_eval

    @staticmethod
    def _eval_text(name: str, row: Row) -> str:
        key = EVAL_PREFIX + name
        if key not in row:
            return ""
        return "tie" if is_tie(row, key) else metric(name).format(row[key])

    def _evaluation(self) -> RenderableType:
        """Return the last evaluation, for terminals whose table has no room for it."""
        if not self._last_eval:
            return Group()
        only = self._last_eval is self._first_eval
        cells = []
        for name in filter(self._in_eval, self._names):
            first = self._eval_text(name, self._first_eval)
            start = "" if only or first in ("", "tie") else f" ({first})"
            cells.append(f"{metric(name).title} {self._eval_text(name, self._last_eval)}{start}")
        step = int(self._last_eval["step"] or 0)
        head = Text(f"eval at step {step}{'' if only else ' (at start)'}:", "dim")
        return Group(head, Padding(Columns(cells, padding=(0, 2)), (0, 0, 0, 2)))

    def _last_advice(self, console: Console, options: ConsoleOptions) -> RenderableType:
        if not self._advice:
            return Group()
        advice = self._advice[-1]
        count = f" ({len(self._advice)} so far)" if len(self._advice) > 1 else ""
        text = f"{LEVEL_NAMES[advice.level]} at step {advice.step}{count}: {advice}"
        lines = [*Text(text, _COLOURS[advice.level]).wrap(console, options.max_width)]
        if len(lines) > _ADVICE_LINES:
            lines[_ADVICE_LINES - 1].truncate(options.max_width - 4)
            lines[_ADVICE_LINES - 1].append(" ...")
        return Group(Text(), *lines[:_ADVICE_LINES])


class Sparkline:
    """A line of text that shows the course of values; neighbours are averaged to fit."""

    # A full block would touch the line above.
    _BLOCKS = "▁▂▃▄▅▆▇"
    _ASCII = "_.-=+*#"
    _MIN_WIDTH, _MAX_WIDTH = 8, 40

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._MIN_WIDTH, self._MAX_WIDTH)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = min(options.max_width, self._MAX_WIDTH)
        yield Text(self.text(width, ascii_only=options.ascii_only))

    def text(self, width: int, *, ascii_only: bool = False) -> str:
        """Return at most `width` characters."""
        values = self._values
        if not values or width < 1:
            return ""
        marks = self._ASCII if ascii_only else self._BLOCKS
        count = min(width, len(values))
        edges = [i * len(values) // count for i in range(count + 1)]
        means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
        low, high = min(means), max(means)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            return marks[len(marks) // 2] * count
        top = len(marks) - 1
        return "".join(marks[round((mean - low) / (high - low) * top)] for mean in means)
