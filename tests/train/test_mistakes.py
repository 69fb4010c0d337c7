"""Data that does not fit gets a code, a place and a cure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefcli import cli
from tests.support.mistakes import Mistake, mistakes


@mistakes("data.yaml")
def test_mistake_in_data_is_answered(mistake: Mistake, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mistake.make(Path())
    recipe = Path("ok.yaml").read_text("utf-8").replace("models/tiny", str(tiny_model))
    Path("ok.yaml").write_text(recipe, "utf-8")
    monkeypatch.setattr(sys, "argv", ["prefcli", "data", "ok.yaml"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    mistake.check(int(stop.value.code or 0), capsys.readouterr().err)
