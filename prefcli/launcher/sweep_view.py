"""The table of a sweep on a terminal, redrawn while its runs train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from prefcli.console import is_screen, print_above, stream, visible
from prefcli.launcher.sweep import run_in
from prefcli.launcher.trials import Trial
from prefcli.report.run_list import run_row, table, waiting_row


@contextmanager
def live_table(trials: Sequence[Trial], folder: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that redraws the table; a log has none."""
    if not is_screen():
        yield lambda: None
        return
    console = Console(file=stream(), highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def redraw() -> None:
            lines = table(table_rows(trials, folder), omit=("method", "started"))
            text = Text(visible("\n".join(lines)), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)

        print_above(lambda line: console.print(Text.from_ansi(line), soft_wrap=True))
        try:
            yield redraw
        finally:
            print_above(None)
            live.update(Text(""), refresh=True)


def table_rows(trials: Sequence[Trial], folder: Path) -> list[dict[str, object]]:
    """Return a row for each trial."""
    rows = []
    for trial in trials:
        run = run_in(folder / trial.name)
        rows.append(waiting_row(trial.name) if run is None else run_row(run, folder))
    return rows
