"""A run on a terminal: a view that stays at the bottom, while what is said scrolls above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.live import Live

from prefcli.console import print_above, stream
from prefcli.health import Advice
from prefcli.metrics import Row
from prefcli.training.progress.base import advice_line
from prefcli.training.progress.eta import Pace
from prefcli.training.progress.layout import View

_A_SECOND = 2
"""Drawings. The clock must be seen to go; more would take time from the training."""


class RichLiveProgress:
    """Keeps a View on the terminal until it is closed, and leaves the last one there."""

    def __init__(
        self,
        title: str,
        watched: Sequence[str],
        in_evaluations: Sequence[str],
        console: Console | None = None,
    ) -> None:
        self._what = (title, watched, in_evaluations)
        self._console = console or Console(file=stream())
        self._view: View | None = None
        self._live: Live | None = None

    @property
    def view(self) -> View:
        assert self._view is not None, "not open yet"
        return self._view

    def open(self, pace: Pace, earlier: Iterable[Row]) -> None:
        self._view = View(*self._what, pace)
        for row in earlier:
            self._view.measured(row)
        self._live = Live(
            self._view,
            console=self._console,
            refresh_per_second=_A_SECOND,
            # More lines than the terminal has would be drawn again and again below each other.
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        print_above(self._print)

    def evaluating(self, batch: int, batches: int | None) -> None:
        self.view.doing = f"evaluating {batch}/{batches}" if batches else f"evaluating {batch}"

    def stepped(self) -> None:
        self.view.doing = ""

    def measured(self, row: Row) -> None:
        self.view.doing = ""
        self.view.measured(row)

    def advised(self, advice: Advice) -> None:
        self.view.advised(advice)
        self._print(advice_line(advice))

    def close(self) -> None:
        print_above(None)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
