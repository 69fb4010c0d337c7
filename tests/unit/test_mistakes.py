"""Ordinary mistakes on the command line and in a recipe get a code, a place and a cure."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prefcli import cli
from tests.support.mistakes import Mistake, mistakes


@pytest.fixture
def prefcli(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: (exit code, standard error)."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prefcli", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    return run


@mistakes("command_line.yaml")
def test_mistake_on_the_command_line_is_answered(mistake: Mistake, prefcli):
    mistake.make(Path())
    mistake.check(*prefcli(*shlex.split(mistake.command)))


@mistakes("recipe.yaml")
def test_mistake_in_a_recipe_is_answered(mistake: Mistake, prefcli):
    mistake.make(Path())
    mistake.check(*prefcli("validate", "ok.yaml"))


@pytest.mark.parametrize(
    "command",
    [("dpo", "{}"), ("{}",), ("runs", "{}"), ("init", "{}", "--model", "m", "--train", "t.jsonl")],
    ids=" ".join,
)
def test_name_that_is_too_long_for_a_file_is_answered(command, prefcli):
    code, printed = prefcli(*(word.format("x" * 5000) for word in command))
    assert code == 2
    assert printed.startswith("error: ")
    assert "Traceback" not in printed


def test_init_whose_question_is_not_answered_exits_with_130(tmp_path):
    terminal, other_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "prefcli", "init", str(tmp_path / "new.yaml")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=other_end,
        stdout=other_end,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(terminal, b"\x04")  # the end of input
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 130


def test_steps_and_epochs_together_are_a_warning(prefcli):
    Mistake("none", "", "", "").make(Path())
    code, printed = prefcli("validate", "ok.yaml", "training.num_train_epochs=2")
    assert code == 0
    assert printed.startswith("warning: override 'training.num_train_epochs=2'")
    assert "[RCP016]" in printed


def test_recipe_without_a_mistake_is_valid(prefcli):
    Mistake("none", "", "", "").make(Path())
    assert prefcli("validate", "ok.yaml") == (0, "")
