"""Guarded trackers: what they record, and what a broken one costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TensorBoardCallback

from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import RecipeError
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.training.callbacks.experiment_trackers import GuardedTracker
from prefcli.training.trainer import make_trainer


@pytest.fixture
def recipe(recipe_data, make_recipe, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    recipe_data["logging"] = {"report_to": ["tensorboard"]}
    return make_recipe(recipe_data).recipe


def trainer_for(recipe):
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.dpo, tokenizer)
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    return make_trainer(recipe, recipe.dpo, detect_device(), policy, tokenizer, inputs)[0]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tracker_tensorboard_records_metrics_and_the_recipe(recipe, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghijklmnop")
    trainer = trainer_for(recipe)
    trainer.train()
    trainer.evaluate()
    folder = Path(recipe.output_dir) / "tensorboard"
    assert f"tracking: tensorboard --logdir {folder}" in capsys.readouterr().out
    (file,) = folder.iterdir()
    recorded = events(folder)
    names = recorded.Tags()["scalars"]
    assert {
        "train/loss",
        "train/learning_rate",
        "train/rewards/margins",
        "train/rewards/accuracies",
        "train/logps/chosen",
        "eval/loss",
        "eval/rewards/margins",
    } <= set(names)
    logged = {
        key: [(row["step"], row[name]) for row in trainer.state.log_history if name in row]
        for key, name in (("train/loss", "loss"), ("eval/loss", "eval_loss"))
    }
    assert [step for step, _ in logged["train/loss"]] == [1, 2]
    # Before the first step, and after training.
    assert [step for step, _ in logged["eval/loss"]] == [0, 2]
    for key, values in logged.items():
        arrived = [(event.step, event.value) for event in recorded.Scalars(key)]
        assert arrived == [(step, pytest.approx(value)) for step, value in values]
    text = recorded.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    sent = json.loads(text)
    assert sent["run_name"] == "run"
    assert sent["recipe"]["dpo"]["beta"] == 0.1
    assert sent["recipe"]["data"]["train"][0]["path"].endswith("train.jsonl")
    assert b"hf_0123456789" not in file.read_bytes()


class Refuses(TensorBoardCallback):
    """A tracker whose server is unreachable, from the start or later."""

    def __init__(self, start: bool) -> None:
        super().__init__()
        self.start = start

    def on_train_begin(self, *args, **kwargs):
        if self.start:
            raise ConnectionError("no route to tracker\nand much more")
        print("\x1b[1m* welcome\x1b[0m")

    def on_log(self, *args, **kwargs):
        raise ConnectionError("no route to tracker")


def with_broken(recipe, *, start: bool):
    trainer = trainer_for(recipe)
    callbacks = trainer.callback_handler.callbacks
    (at,) = [i for i, callback in enumerate(callbacks) if isinstance(callback, GuardedTracker)]
    callbacks[at] = GuardedTracker("mlflow", Refuses(start), recipe)
    return trainer


def test_tracker_that_cannot_start_stops_before_the_first_step(recipe):
    trainer = with_broken(recipe, start=True)
    with pytest.raises(RecipeError) as caught:
        trainer.train()
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == ("TRN101", "logging.report_to")
    assert problem.message == "mlflow cannot start: no route to tracker"
    assert trainer.state.global_step == 0


def test_tracker_that_fails_later_is_disabled(recipe, capsys):
    trainer = with_broken(recipe, start=False)
    trainer.train()
    assert trainer.state.global_step == 2
    out = capsys.readouterr().out
    assert out.count("warning: mlflow failed and was disabled: no route") == 1
    assert "tracking: mlflow: welcome" in out
    assert "\x1b" not in out


def test_report_to_with_a_tracker_twice_is_refused(recipe_data, make_recipe):
    recipe_data["logging"] = {"report_to": ["wandb", "wandb"]}
    with pytest.raises(RecipeError) as caught:
        make_recipe(recipe_data)
    assert [problem.code for problem in caught.value.problems] == ["RCP016"]
