"""Every command: parse, call one function, print, choose the exit code."""

from prefcli.cli.main import main

__all__ = ["main"]
