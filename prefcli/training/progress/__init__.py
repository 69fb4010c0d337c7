"""LIGHT shelf: displays of a run's progress. Plain lines for a log, a live view for a terminal.

A display has `start(pace, rows)`, where rows are those of a resumed run, `show_row`,
`show_advice`, `show_eval_batch`, `show_step`, and `stop`, which may be called twice.
"""

from prefcli.training.progress.plain import PlainProgress
from prefcli.training.progress.rich_live import RichLiveProgress

ProgressDisplay = PlainProgress | RichLiveProgress

__all__ = ["PlainProgress", "ProgressDisplay", "RichLiveProgress"]
