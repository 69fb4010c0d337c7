"""Lines for people: terminal escapes are shown, secrets are hidden."""

from __future__ import annotations

import sys

import pytest

from prefcli.console import document, output_problem, say, warn
from tests.support.problems import stops_with


@pytest.mark.parametrize("show", [say, document, warn])
def test_console_escapes_control_characters(capsys, show):
    show("a prompt\twith \x1b[31mred\x1b[0m, \x9b2J, \x07, \r and \u202eturned\nnew line é 😀")
    text = capsys.readouterr().out
    assert (
        "with \\x1b[31mred\\x1b[0m, \\x9b2J, \\x07, \\x0d and \\u202eturned\nnew line é 😀\n"
        in text
    )
    assert "a prompt\t" in text


def fill_disk(monkeypatch) -> None:
    """Let standard output and standard error be files on a full disk."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, open("/dev/full", "w", encoding="utf-8"))  # noqa: SIM115


def test_log_on_a_full_disk_ends_nothing(monkeypatch):
    fill_disk(monkeypatch)
    for _ in range(3):
        say("a line")
    sys.stdout.flush()  # as Python does at the end: nothing is left to write
    sys.stderr.flush()


def test_result_on_a_full_disk_is_an_error(monkeypatch):
    fill_disk(monkeypatch)
    with stops_with("ENV061"):
        document("{}")
    sys.stdout.flush()
    problem = output_problem()
    assert problem is not None
    assert problem.code == "ENV061"
