"""A failure in one of two processes stops both, with one message."""

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
    """Run `prefcli dpo` in two processes; return (exit codes, output)."""

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
    """Change the trainer of the second process."""

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


def test_nan_on_one_process_stops_both(run_both, on_second, recipe_data):
    on_second(lambda trainer: trainer.add_callback(Poison()))
    codes, output = run_both(max_steps=3)
    assert codes == [5, 5], output
    assert output.count("error: ") == 1
    assert "the loss is nan at step 2; rows of the batch: " in output
    assert (
        output.partition("rows of the batch")[2].count("train.jsonl: row") == 2
    )  # the two that the second process had
    run = json.loads((Path(recipe_data["output_dir"]) / "run.json").read_text())
    assert run["status"] == "diverged"


def test_wrong_reference_on_one_process_stops_both(run_both, on_second):
    def spoil(trainer):
        with torch.no_grad():
            next(trainer.ref_model.parameters()).mul_(1.5)

    on_second(spoil)
    codes, output = run_both()
    assert codes == [3, 3], output
    assert output.count("error: ") == 1
    assert "the reference is not the starting policy" in output


def test_health_rule_is_evaluated_on_one_process(run_both, monkeypatch):
    def observe(self, row):
        if row["step"] < 2:
            return []
        return [Advice("margin", "stop", 2, "as the test says", "so", "do not")]

    monkeypatch.setattr(Monitor, "observe", observe)
    codes, output = run_both(max_steps=5)
    assert codes == [5, 5], output
    assert output.count("error: ") == 1


def test_early_stopping_stops_both_at_the_same_step(run_both, recipe_data):
    codes, output = run_both(
        max_steps=8,
        eval_steps=1,
        save_steps=1,
        learning_rate=0.2,
        lr_scheduler_type="constant",
        early_stopping={"metric": "eval_loss", "patience": 2},
    )
    assert codes == [0, 0], output
    run = json.loads((Path(recipe_data["output_dir"]) / "run.json").read_text())
    assert run["steps"] == run["best_step"] + 2
