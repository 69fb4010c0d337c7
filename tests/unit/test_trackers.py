"""Trackers whose package is missing or disabled are found by `validate`, without imports."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.machinery import ModuleSpec

import pytest

from prefcli import cli
from prefcli.recipe import trackers
from prefcli.recipe.sections import Logging

RECIPE = """output_dir: out
model: {name_or_path: a/b}
dpo: {}
data: {train: {path: a/c}}
logging:
  report_to: [tensorboard, wandb]
"""


@pytest.fixture
def installed(monkeypatch):
    """A function that sets which packages are installed."""

    def install(*names: str) -> None:
        def find(name: str) -> ModuleSpec | None:
            return ModuleSpec(name, None, origin=f"{name}.py") if name in names else None

        monkeypatch.setattr(trackers, "find_spec", find)

    return install


def validate(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefcli", "validate", str(path), "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out)[0]


def test_validate_without_tracker_package_warns(tmp_path, monkeypatch, capsys, installed):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    installed("tensorboard")
    code, result = validate(path, monkeypatch, capsys)
    assert (code, result["valid"]) == (0, True)
    (warning,) = result["warnings"]
    assert warning == {
        "code": "RCP023",
        "place": f"{path}:6:14",
        "path": "logging.report_to",
        "message": "wandb needs the package wandb",
        "hint": "pip install wandb, or all trackers: pip install 'prefcli[trackers]'",
    }
    installed("tensorboard", "wandb")
    assert validate(path, monkeypatch, capsys) == (
        0,
        {"recipe": str(path), "valid": True, "methods": ["dpo"]},
    )


def test_installed_ignores_folders_without_a_package(tmp_path, monkeypatch):
    """wandb writes a folder of its name where it ran."""
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not trackers.is_installed("a_tracker")
    (tmp_path / "a_tracker" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert trackers.is_installed("a_tracker")


def test_mlflow_that_the_environment_disables_is_a_problem(monkeypatch, installed):
    installed("mlflow")
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "true")
    (problem,) = trackers.tracker_problems(Logging(report_to=["mlflow"]))
    assert problem.message.startswith("the environment has DISABLE_MLFLOW_INTEGRATION=true")
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "false")
    assert trackers.tracker_problems(Logging(report_to=["mlflow"])) == []
