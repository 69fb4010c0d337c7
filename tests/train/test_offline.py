"""Fetched on one machine, trained on another without a socket; and no secret in what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support.tiny_hub import serve
from tests.support.tiny_runs import pairs, small_recipe, write_jsonl

SECRETS = {
    "HF_TOKEN": "hf_" + "q7Zt" * 8,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzzzz",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
}
CARD = """---
configs:
- config_name: other
  data_files: [{split: train, path: other/*.jsonl}]
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
---
"""
NO_SOCKETS = """
import os, socket
def refuse(what):
    def refused(*args, **kwargs):
        if not (args and getattr(args[0], "family", None) == socket.AF_UNIX):
            with open(os.environ["SOCKETS"], "a") as file:
                file.write(f"{what} {args[1:]}\\n")
            raise OSError("no network here")
    return refused
socket.socket.connect = refuse("connect")
socket.socket.connect_ex = refuse("connect_ex")
socket.getaddrinfo = refuse("getaddrinfo")
"""


def prefcli(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    known = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**known, "HF_HOME": str(folder / "home"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "prefcli", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    """A hub with a base, an adapter on it and data; and a recipe that takes all of them."""
    folder = tmp_path_factory.mktemp("offline")
    hub = folder / "hub"
    base = shutil.copytree(tiny_model, hub / "models" / "org" / "tiny")
    (base / "pytorch_model.bin").write_bytes(b"never")
    (base / "original").mkdir()
    (base / "original" / "consolidated.safetensors").write_bytes(b"never")
    torch.manual_seed(0)
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapter.save_pretrained(str(hub / "models" / "org" / "adapter"))
    config = hub / "models" / "org" / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model_name_or_path": "org/tiny"}))
    pickled = hub / "models" / "org" / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"never")
    data = hub / "datasets" / "org" / "pairs"
    for part in ("main", "other"):
        (data / part).mkdir(parents=True)
        write_jsonl(data / part / "train.jsonl", pairs(24))
    write_jsonl(data / "main" / "test.jsonl", pairs(40)[30:])
    (data / "README.md").write_text(CARD)
    recipe = small_recipe(Path("org/adapter"), folder)
    recipe["model"]["adapter"] = "continue"
    source = {"path": "org/pairs", "name": "main"}
    recipe["data"] |= {"train": source, "eval": {**source, "split": "test"}}
    recipe |= {"output_dir": "run", "logging": {"report_to": ["tensorboard"]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def fetched(place):
    with serve(place / "hub") as (hub, url):
        done = prefcli(place, "download", "recipe.yaml", "--json", HF_ENDPOINT=url)
        failed = prefcli(
            place,
            "download",
            "recipe.yaml",
            "model.name_or_path=org/pickled",
            "model.adapter=null",
            "reference={name_or_path: org/none}",
            "data.train={path: org/gone}",
            "data.eval={path: ./no.jsonl}",
            HF_ENDPOINT=url,
        )
        return done, failed, list(hub.asked)


def test_fetch_tells_what_it_took(fetched, place):
    done, _, _ = fetched
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)["taken"]
    assert [(each["path"], each["kind"], each["name"]) for each in taken] == [
        ("model.name_or_path", "model", "org/adapter"),
        ("model.name_or_path", "model", "org/tiny"),
        ("data.train[0].path", "dataset", "org/pairs"),
    ]
    base = place / "hub" / "models" / "org" / "tiny"
    never = {"pytorch_model.bin"}
    files = {f.name for f in base.iterdir() if f.is_file()} - never
    assert set(taken[1]["files"]) == files
    assert taken[1]["bytes"] == sum((base / name).stat().st_size for name in files)
    # other/: datasets looks at the first configuration to tell the format.
    data = {"README.md", "main/test.jsonl", "main/train.jsonl", "other/train.jsonl"}
    assert set(taken[2]["files"]) == data
    assert f"files, {sum(e['bytes'] for e in taken) / 1000:.1f} kB, in {place}/home/hub" in (
        done.stderr
    )


def test_fetch_takes_nothing_that_can_run(fetched):
    _, _, asked = fetched
    assert not [line for line in asked if line.endswith((".bin", "consolidated.safetensors"))]


def test_fetch_tells_all_that_fails(fetched):
    _, failed, _ = fetched
    assert failed.returncode == 2
    for said in (
        "model.name_or_path: org/pickled holds no model.safetensors, only pickled weights",
        "reference.name_or_path: the model org/none can't be fetched: the hub has none of that",
        "data.train[0].path: the dataset org/gone can't be fetched: the hub has none of that",
        "data.eval[0].path: no such file or folder: ./no.jsonl",
    ):
        assert said in failed.stderr
    assert "total: 0 files" in failed.stdout


@pytest.fixture(scope="module")
def ran(fetched, place):
    """A whole run without a network, in an environment full of secrets."""
    guard = place / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_SOCKETS)
    paths = os.pathsep.join([str(guard), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": paths, "SOCKETS": str(place / "sockets"), **SECRETS}
    return prefcli(place, "dpo", "recipe.yaml", "--offline", **environment)


def test_a_run_offline_opens_no_socket(ran, place):
    assert ran.returncode == 0, ran.stderr
    assert not (place / "sockets").exists()
    assert (place / "run" / "model" / "adapter_model.safetensors").is_file()
    assert (place / "run" / "report.html").is_file()


def test_the_commits_are_in_run_json(ran, fetched, place):
    run = json.loads((place / "run" / "run.json").read_text())
    taken = json.loads(fetched[0].stdout)["taken"]
    wanted = [{k: each[k] for k in ("kind", "name", "revision", "commit")} for each in taken]
    assert run["hub"] == wanted
    assert all(len(each["commit"]) == 40 for each in wanted)


def test_no_secret_is_anywhere(ran, place):
    written = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    assert [p for p in written if "tfevents" in p.name]
    for secret in SECRETS.values():
        assert secret not in ran.stdout + ran.stderr
        assert [str(p) for p, content in written.items() if secret.encode() in content] == []
