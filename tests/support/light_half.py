"""The light half of prefcli: what it must not import, and how to run its commands."""

from __future__ import annotations

import sys

import pytest

from prefcli import cli

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """Run a prefcli command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)
