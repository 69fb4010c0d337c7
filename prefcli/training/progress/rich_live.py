"""Progress on a terminal: a view that stays at the bottom, with log lines scrolling above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from prefcli.console import print_above, stream
from prefcli.health import Advice
from prefcli.metrics import Row
from prefcli.training.progress.eta import Pace
from prefcli.training.progress.live_view import LiveView

_REFRESH_PER_SECOND = 2
"""Enough to see the clock move; more would slow down training."""


class RichLiveProgress:
    """Draws a LiveView until it is stopped, and leaves the last one on the terminal."""

    def __init__(
        self,
        title: str,
        watched: Sequence[str],
        in_evaluations: Sequence[str],
        console: Console | None = None,
    ) -> None:
        self._content = (title, watched, in_evaluations)
        self._console = console or Console(file=stream())
        self._view: LiveView | None = None
        self._live: Live | None = None

    @property
    def view(self) -> LiveView:
        assert self._view is not None, "start comes first"
        return self._view

    def start(self, pace: Pace, rows: Iterable[Row]) -> None:
        self._view = LiveView(*self._content, pace)
        for row in rows:
            self._view.add_row(row)
        self._live = Live(
            self._view,
            console=self._console,
            refresh_per_second=_REFRESH_PER_SECOND,
            # A view that is taller than the terminal would be drawn below itself again and again.
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        print_above(self._print)

    def show_eval_batch(self, batch: int, batches: int | None) -> None:
        self.view.activity = f"evaluating {batch}/{batches}" if batches else f"evaluating {batch}"

    def show_step(self) -> None:
        self.view.activity = ""

    def show_row(self, row: Row) -> None:
        self.view.activity = ""
        self.view.add_row(row)

    def show_advice(self, advice: Advice) -> None:
        self.view.add_advice(advice)
        self._print(advice.as_line())

    def stop(self) -> None:
        print_above(None)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self._console.print(Text.from_ansi(text), soft_wrap=True)
