"""What a run shows while it goes: plain lines for a log, a live view for a terminal. No torch."""

from prefcli.training.screen.base import Screen
from prefcli.training.screen.lines import LogLines
from prefcli.training.screen.live import LiveScreen

__all__ = ["LiveScreen", "LogLines", "Screen"]
