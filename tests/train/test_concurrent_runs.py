"""What one process sees stops all of them, with one message."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainerCallback

from prefcli import cli
from prefcli.health import Advice, Monitor
from prefcli.training import run as run_module
from tests.support.processes import in_processes


def is_second() -> bool:
    return os.environ.get("RANK") == "1"


@pytest.fixture
def run_both(recipe_data, tmp_path):
    """`prefcli dpo` in two processes; (exit codes, all that was said)."""

    def run(**changes):
        recipe_data["training"] |= {
            "global_batch_size": 4,
            "per_device_train_batch_size": 2,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_data), encoding="utf-8")

        def job():
            sys.argv = ["prefcli", "dpo", str(path)]
            cli.main()

        ended = in_processes([job], tmp_path / "logs")
        return ended.codes, "".join(ended.logs)

    return run


@pytest.fixture
def on_second(monkeypatch):
    """Do something to the trainer that the second process makes."""

    def use(change):
        stock = run_module.make_trainer

        def make(*args, **kwargs):
            trainer, effective = stock(*args, **kwargs)
            if is_second():
                change(trainer)
            return trainer, effective

        monkeypatch.setattr(run_module, "make_trainer", make)

    return use


class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)


def test_a_number_that_one_process_lost(run_both, on_second, recipe_data):
    on_second(lambda trainer: trainer.add_callback(Poison()))
    codes, said = run_both(max_steps=3)
    assert codes == [5, 5], said
    assert said.count("error: ") == 1
    assert "the loss is nan at step 2; rows of the batch: " in said
    assert (
        said.partition("rows of the batch")[2].count("train.jsonl: row") == 2
    )  # the two that the second process had
    run = json.loads((Path(recipe_data["output_dir"]) / "run.json").read_text())
    assert run["status"] == "diverged"


def test_a_reference_that_is_broken_on_one_process(run_both, on_second):
    def spoil(trainer):
        with torch.no_grad():
            next(trainer.ref_model.parameters()).mul_(1.5)

    on_second(spoil)
    codes, said = run_both()
    assert codes == [3, 3], said
    assert said.count("error: ") == 1
    assert "the reference is not the starting policy" in said


def test_a_health_rule_judges_on_one_process(run_both, monkeypatch):
    def look(self, row):
        if row["step"] < 2:
            return []
        return [Advice("margin", "stop", 2, "as the test says", "so", "do not")]

    monkeypatch.setattr(Monitor, "look", look)
    codes, said = run_both(max_steps=5)
    assert codes == [5, 5], said
    assert said.count("error: ") == 1


def test_early_stopping_is_at_one_step_on_all(run_both, recipe_data):
    codes, said = run_both(
        max_steps=8,
        eval_steps=1,
        save_steps=1,
        learning_rate=0.2,
        lr_scheduler_type="constant",
        early_stopping={"metric": "eval_loss", "patience": 2},
    )
    assert codes == [0, 0], said
    run = json.loads((Path(recipe_data["output_dir"]) / "run.json").read_text())
    assert run["steps"] == run["best_step"] + 2
