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


def test_every_library_is_told():
    go_offline()
    assert [os.environ[name] for name in VARIABLES] == ["1", "1", "1"]


def kept(*trackers: str) -> list[str]:
    return keep_trackers_here(Logging(report_to=list(trackers)))


def test_wandb_writes_files_and_says_so():
    (said,) = kept("wandb", "tensorboard", "mlflow", "trackio")
    assert "wandb sync" in said
    assert os.environ["WANDB_MODE"] == "offline"


def test_without_wandb_nothing_is_set():
    assert kept("tensorboard") == []
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
def test_a_tracker_that_can_only_send(tracker, variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError) as caught:
        kept(tracker)
    (problem,) = caught.value.problems
    assert problem.path == "logging.report_to"
    assert variable in problem.message
    assert value not in str(problem)


@pytest.mark.parametrize("uri", ["", "runs/mlflow", "file:///runs", "sqlite:///runs.db"])
def test_mlflow_on_this_machine(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert kept("mlflow") == []


def test_telemetry_is_off_unless_it_is_turned_on(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    no_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    rest = {s.name: s.off for s in SWITCHES if s.name != "HF_HUB_DISABLE_TELEMETRY"}
    assert {name: os.environ[name] for name in rest} == rest
    assert not {"DO_NOT_TRACK", "DISABLE_TELEMETRY"} & os.environ.keys()
