"""Fixtures for tests that train: a restored process state, dry-runs, rows as trl prepares them."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from accelerate.utils import imports
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli import cli
from prefcli.checkpoints import atomic
from prefcli.console import keep_stdout_for_json
from prefcli.library_logging import quiet_libraries
from prefcli.memory import step_memory
from prefcli.memory.prediction import Memory
from prefcli.model import load_tokenizer
from prefcli.recipe import load
from prefcli.training import finish
from prefcli.training.run import train
from tests.support.tiny_runs import small_recipe, trainer_of, write_jsonl

torch.set_num_threads(1)
quiet_libraries()
# Each training run collects garbage; the objects of imported libraries need not be scanned.
gc.freeze()
# accelerate reads peft's metadata from the disk dozens of times in each run.
imports._is_package_available = functools.cache(imports._is_package_available)


@pytest.fixture(autouse=True)
def _plain_console():
    keep_stdout_for_json(False)


@pytest.fixture(autouse=True)
def _restored_environment():
    """Remove the variables that accelerate's classes set."""
    with mock.patch.dict(os.environ):
        yield


def pytest_report_header() -> str:
    return (
        "prefcli, tests/train: fsync is replaced by nothing; reports and model cards are written "
        "only in tests marked `report`, and dry-runs simulate a step only in tests marked `memory`"
    )


@pytest.fixture(autouse=True)
def _without_reports(request, monkeypatch):
    """Skip report and model card, which take longer than a run of a tiny model."""
    if request.node.get_closest_marker("report") is None:
        monkeypatch.setattr(finish, "write_report_and_card", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def _without_simulated_step(request, monkeypatch):
    """Skip the simulated step, which takes most of the time of a dry-run."""

    def predict(recipe, *args, length: int, **kwargs) -> Memory:
        rows = recipe.training.train_batch_size
        return Memory({}, "a step that is not simulated", length, rows)

    if request.node.get_closest_marker("memory") is None:
        monkeypatch.setattr(step_memory, "predict", predict)


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch):
    """Skip fsync: only a power cut shows the difference, and it is slow on a busy disk."""
    monkeypatch.setattr(atomic, "fsync", lambda handle: None)


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """Run `prefcli METHOD recipe.yaml --dry-run --json`: (exit code, document, standard error)."""

    def run(data: dict, method: str = "dpo", *arguments: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        argv = ["prefcli", method, str(path), "--dry-run", "--json", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), json.loads(out), err

    return run


@pytest.fixture
def trl_rows(recipe_data, make_recipe, tmp_path):
    """Build (canonical rows, the rows that trl prepares from them, tokenizer, recipe)."""

    def build(name, rows, change=lambda tokenizer: None, **section):
        train = write_jsonl(tmp_path / "rows.jsonl", rows)
        recipe_data["data"] = {"train": {"path": str(train)}, "max_length": 64}
        recipe_data[name] = section
        recipe = make_recipe(recipe_data).recipe
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        trainer, inputs = trainer_of(recipe, name, tokenizer)
        return inputs.train.rows.to_list(), trainer.train_dataset.to_list(), tokenizer, recipe

    return build


@pytest.fixture(scope="session")
def sft_run(tiny_model, tmp_path_factory) -> Path:
    """Train a LoRA adapter by SFT with a large learning rate, so that it differs from its base."""
    folder = tmp_path_factory.mktemp("sft-run")
    data = small_recipe(tiny_model, folder)
    data["lora"] = {"rank": 2, "alpha": 6, "dropout": 0.1}
    data["training"] |= {"learning_rate": 0.05, "max_steps": 6}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load(str(folder / "recipe.yaml")).recipe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report_and_card", lambda *args, **kwargs: None)
        train(recipe, recipe.sft)
    return Path(recipe.output_dir)


@pytest.fixture
def sft_adapter(sft_run, tmp_path) -> Path:
    """A copy of the adapter, in its run folder, which the test may change."""
    return Path(shutil.copytree(sft_run, tmp_path / "sft")) / "model"


@pytest.fixture(scope="session")
def tuned(tiny_model, tmp_path_factory):
    """A full model and an adapter, both different from the tiny model that they start from."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "full")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "full")
    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.config._name_or_path = str(tiny_model)
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_model)
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def run_folder(tuned, recipe_data, tmp_path):
    """A finished run of dpo with an adapter, without training it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_data), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"method": "dpo"}), encoding="utf-8")
    (folder / "model").symlink_to(tuned / "adapter")
    return folder


@pytest.fixture
def run_json(monkeypatch, capsys):
    """Run a command with --json: (exit code, document, standard error)."""

    def run(*arguments) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["prefcli", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), json.loads(out), err

    return run
