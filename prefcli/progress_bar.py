"""The progress of work that takes more than a moment: a bar on a terminal, some lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from prefcli.console import has_live_view, is_main_process, is_screen, say, stream
from prefcli.text import format_duration

T = TypeVar("T")

_DELAY = 2.0
"""Seconds after which a bar appears."""
LOG_SECONDS = 30.0
"""Seconds between two lines of a log."""


@contextmanager
def progress(
    label: str, total: int, unit: str = "rows", *, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts what is done. done: what an earlier start has done.

    Shows nothing on other processes than the main one, or while a live view is drawn.
    """
    if not is_main_process() or has_live_view():
        yield lambda _: None
    elif is_screen():
        bar = _Bar(label, total, unit, done)
        try:
            yield bar.add
        finally:
            bar.stop()
    else:
        yield _Log(label, total, unit, done).add


def counted(items: Sequence[T], label: str, unit: str = "rows") -> Iterator[T]:
    """Yield the items, and show how many of them are done."""
    with progress(label, len(items), unit) as count:
        for item in items:
            yield item
            count(1)


class _Bar:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self._bar = Progress(
            TextColumn(f"{{task.description}}: {{task.completed:,}} of {{task.total:,}} {unit}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(file=stream()),
            refresh_per_second=2,
            transient=True,
        )
        self._task = self._bar.add_task(escape(label), total=total, completed=done)
        self._began = time.monotonic()

    def add(self, number: int) -> None:
        self._bar.advance(self._task, number)
        if not self._bar.live.is_started and time.monotonic() - self._began > _DELAY:
            self._bar.start()

    def stop(self) -> None:
        self._bar.stop()


class _Log:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._first = self._done = done
        self._began = self._printed = time.monotonic()

    def add(self, number: int) -> None:
        self._done += number
        now = time.monotonic()
        if now - self._printed < LOG_SECONDS or self._done >= self._total:
            return
        self._printed = now
        pace = (now - self._began) / (self._done - self._first)
        say(
            f"{self._label}: {self._done:,} of {self._total:,} {self._unit}, "
            f"{format_duration(pace * (self._total - self._done))} left"
        )
