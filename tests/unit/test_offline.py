"""--offline before any library is loaded: the environment, trackers that send, telemetry."""

from __future__ import annotations

import os

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe.offline import go_offline
from prefcli.recipe.sections import Logging
from prefcli.recipe.trackers import keep_trackers_here
from prefcli.telemetry import SWITCHES, no_telemetry

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TRACKERS = ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in (*VARIABLES, *TRACKERS, *(switch.name for switch in SWITCHES)):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever is set here
        monkeypatch.delenv(name)


def test_go_offline_sets_the_variable_of_every_library():
    go_offline()
    assert [os.environ[name] for name in VARIABLES] == ["1", "1", "1"]


def keep_trackers(*trackers: str) -> list[str]:
    return keep_trackers_here(Logging(report_to=list(trackers)))


def test_keep_trackers_here_makes_wandb_write_files():
    (lines,) = keep_trackers("wandb", "tensorboard", "mlflow", "trackio")
    assert "wandb sync" in lines
    assert os.environ["WANDB_MODE"] == "offline"


def test_keep_trackers_here_without_wandb_sets_nothing():
    assert keep_trackers("tensorboard") == []
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize(
    ("tracker", "variable", "value"),
    [
        ("wandb", "WANDB_MODE", "online"),
        ("mlflow", "MLFLOW_TRACKING_URI", "https://tracking.example"),
        ("mlflow", "MLFLOW_TRACKING_URI", "databricks://profile"),
        ("trackio", "TRACKIO_SPACE_ID", "me/space"),
        ("trackio", "TRACKIO_SERVER_URL", "http://host:7860"),
    ],
)
def test_keep_trackers_here_tracker_that_sends_is_an_error(tracker, variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError) as caught:
        keep_trackers(tracker)
    (problem,) = caught.value.problems
    assert problem.path == "logging.report_to"
    assert variable in problem.message
    assert value not in str(problem)


@pytest.mark.parametrize("uri", ["", "runs/mlflow", "file:///runs", "sqlite:///runs.db"])
def test_keep_trackers_here_local_mlflow_is_valid(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert keep_trackers("mlflow") == []


def test_telemetry_is_off_by_default(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    no_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    rest = {s.name: s.off for s in SWITCHES if s.name != "HF_HUB_DISABLE_TELEMETRY"}
    assert {name: os.environ[name] for name in rest} == rest
    assert not {"DO_NOT_TRACK", "DISABLE_TELEMETRY"} & os.environ.keys()
