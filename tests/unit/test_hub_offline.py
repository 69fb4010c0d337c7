"""Going offline if the hub is unreachable."""

from __future__ import annotations

import os
import socket

import pytest

from prefcli.recipe import offline
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the test sets
    for name in ("https", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.fixture
def port():
    """A port that a server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    return number


def recipe(model: str, train: str = "./a.jsonl", **sections) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": "runs/x",
            "model": {"name_or_path": model},
            "dpo": {},
            "data": {"train": {"path": train}},
            **sections,
        }
    )


def test_hub_names_omits_local_paths_and_duplicates(tmp_path):
    mixed = recipe(
        "org/model",
        "org/pairs",
        reference={"name_or_path": "org/other"},
        sft_mix={"data": [{"path": str(tmp_path)}, {"path": "org/chats"}, {"path": "org/pairs"}]},
    )
    assert offline.hub_names(mixed) == ["org/model", "org/other", "org/pairs", "org/chats"]


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("org/model", False),
        ("gpt2", False),
        ("./model", True),
        ("../model", True),
        ("/model", True),
        ("~/model", True),
        ("runs/sft/model", True),
        ("s3://bucket/rows", False),
        ("rows.jsonl", True),
        ("rows/part-1.PARQUET", True),
    ],
)
def test_is_local_by_form(name, local):
    assert is_local(name) is local


def test_is_local_existing_folder_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local("runs/sft")
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    assert is_local("runs/sft")


def test_hub_that_answers_stays_online(monkeypatch, port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert offline.go_offline_if_unreachable(recipe("org/model")) is False
    assert os.environ["HF_HUB_OFFLINE"] == ""


def test_hub_that_does_not_answer_goes_offline(monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert offline.go_offline_if_unreachable(recipe("org/model")) is True
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_hub_that_does_not_answer_goes_offline_for_a_dataset(monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert offline.go_offline_if_unreachable(recipe("./model", "org/pairs")) is True


@pytest.fixture
def no_probe(monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", connect)


def test_local_paths_do_not_ask_the_hub(no_probe):
    assert offline.go_offline_if_unreachable(recipe("./model")) is False
    assert os.environ["HF_HUB_OFFLINE"] == ""


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "TRUE", "yes", "on"])
def test_offline_variable_does_not_ask_the_hub(monkeypatch, no_probe, name, value):
    monkeypatch.setenv(name, value)
    assert offline.go_offline_if_unreachable(recipe("org/model")) is False


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_proxy_variable_stays_online_without_asking(monkeypatch, no_probe, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert offline.go_offline_if_unreachable(recipe("org/model")) is False
    assert os.environ["HF_HUB_OFFLINE"] == ""
