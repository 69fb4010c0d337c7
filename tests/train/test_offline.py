"""A download, an offline run without sockets, and a run folder without secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from prefcli.text import format_bytes
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
    """A hub with a base model, an adapter on it and data, and a recipe that uses all of them."""
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
def downloaded(place):
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
        return done, failed, list(hub.requests)


def test_download_lists_the_files_of_each_repository(downloaded, place):
    done, _, _ = downloaded
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["downloaded"]
    assert [(item["path"], item["kind"], item["name"]) for item in items] == [
        ("model.name_or_path", "model", "org/adapter"),
        ("model.name_or_path", "model", "org/tiny"),
        ("data.train[0].path", "dataset", "org/pairs"),
    ]
    base = place / "hub" / "models" / "org" / "tiny"
    files = {f.name for f in base.iterdir() if f.is_file()} - {"pytorch_model.bin"}
    assert set(items[1]["files"]) == files
    assert items[1]["bytes"] == sum((base / name).stat().st_size for name in files)
    # other/ is needed: datasets infers the format from the first configuration.
    data = {"README.md", "main/test.jsonl", "main/train.jsonl", "other/train.jsonl"}
    assert set(items[2]["files"]) == data
    total = format_bytes(sum(item["bytes"] for item in items))
    assert f"files, {total}, in {place}/home/hub" in done.stderr


def test_download_skips_pickles_and_subfolders(downloaded):
    _, _, requests = downloaded
    assert not [line for line in requests if line.endswith((".bin", "consolidated.safetensors"))]


def test_download_reports_every_failure(downloaded):
    _, failed, _ = downloaded
    assert failed.returncode == 2
    reported = re.findall(r"([\w.\[\]]+\.\w*path): .* \[(ENV\d+)\]", failed.stderr)
    assert sorted(reported) == [
        ("data.eval[0].path", "ENV046"),
        ("data.train[0].path", "ENV043"),
        ("model.name_or_path", "ENV045"),
        ("reference.name_or_path", "ENV043"),
    ]
    assert "total: 0 files" in failed.stdout


@pytest.fixture(scope="module")
def finished_run(downloaded, place):
    """A run without a network, with secrets in its environment."""
    guard = place / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_SOCKETS)
    paths = os.pathsep.join([str(guard), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": paths, "SOCKETS": str(place / "sockets"), **SECRETS}
    return prefcli(place, "dpo", "recipe.yaml", "--offline", **environment)


def test_offline_run_opens_no_socket(finished_run, place):
    assert finished_run.returncode == 0, finished_run.stderr
    assert not (place / "sockets").exists()
    assert (place / "run" / "model" / "adapter_model.safetensors").is_file()
    assert (place / "run" / "report.html").is_file()


def test_offline_run_saves_the_commits(finished_run, downloaded, place):
    run = json.loads((place / "run" / "run.json").read_text())
    items = json.loads(downloaded[0].stdout)["downloaded"]
    keys = ("kind", "name", "revision", "commit")
    assert run["hub"] == [{key: item[key] for key in keys} for item in items]
    assert all(len(item["commit"]) == 40 for item in items)


def test_offline_run_writes_no_secret(finished_run, place):
    written = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    assert [p for p in written if "tfevents" in p.name]
    for secret in SECRETS.values():
        assert secret not in finished_run.stdout + finished_run.stderr
        assert [str(p) for p, content in written.items() if secret.encode() in content] == []
