"""What a run shows while it goes: plain lines for a log, a live view for a terminal. No torch."""

from prefcli.training.watching.screen.base import Screen
from prefcli.training.watching.screen.lines import LogLines
from prefcli.training.watching.screen.live import LiveScreen

__all__ = ["LiveScreen", "LogLines", "Screen"]
