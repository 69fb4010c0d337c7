"""What a run shows while it goes: plain lines for a log, a live view for a terminal. No torch."""

from prefcli.training.progress.base import ProgressDisplay
from prefcli.training.progress.plain import PlainProgress
from prefcli.training.progress.rich_live import RichLiveProgress

__all__ = ["PlainProgress", "ProgressDisplay", "RichLiveProgress"]
