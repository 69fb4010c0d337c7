"""Ordinary mistakes on the command line and in a recipe get a code, a place and a cure."""

from __future__ import annotations

import shlex
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


def test_steps_and_epochs_together_are_a_warning(prefcli):
    Mistake("none", "", "", "").make(Path())
    code, printed = prefcli("validate", "ok.yaml", "training.num_train_epochs=2")
    assert code == 0
    assert printed.startswith("warning: override 'training.num_train_epochs=2'")
    assert "[RCP016]" in printed


def test_recipe_without_a_mistake_is_valid(prefcli):
    Mistake("none", "", "", "").make(Path())
    assert prefcli("validate", "ok.yaml") == (0, "")
