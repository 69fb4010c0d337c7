"""Scripts import what the product has."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/bench/*.py")])
PROGRAMS = [path for path in SCRIPTS if "argparse" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_script_with_help_prints_its_usage(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)  # as Python does for a script
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    assert f"usage: {path.name}" in capsys.readouterr().out
