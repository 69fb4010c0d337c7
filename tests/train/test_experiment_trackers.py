"""transformers' trackers under our guard: what arrives, where, and what a broken one costs."""

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
from prefcli.training.callbacks.experiment_trackers import Tracking
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
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_metrics_arrive_in_tensorboard(recipe, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghijklmnop")
    trainer = trainer_for(recipe)
    trainer.train()
    trainer.evaluate()
    folder = Path(recipe.output_dir) / "tensorboard"
    assert f"tracking: tensorboard: tensorboard --logdir {folder}" in capsys.readouterr().out
    (file,) = folder.iterdir()
    found = events(folder)
    names = found.Tags()["scalars"]
    assert {
        "train/loss",
        "train/learning_rate",
        "train/rewards/margins",
        "train/rewards/accuracies",
        "train/logps/chosen",
        "eval/loss",
        "eval/rewards/margins",
    } <= set(names)
    told = {
        key: [(row["step"], row[name]) for row in trainer.state.log_history if name in row]
        for key, name in (("train/loss", "loss"), ("eval/loss", "eval_loss"))
    }
    assert [step for step, _ in told["train/loss"]] == [1, 2]
    # The one before the first step, and the one after training is over.
    assert [step for step, _ in told["eval/loss"]] == [0, 2]
    for key, values in told.items():
        arrived = [(event.step, event.value) for event in found.Scalars(key)]
        assert arrived == [(step, pytest.approx(value)) for step, value in values]
    text = found.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    sent = json.loads(text)
    assert sent["run_name"] == "run"
    assert sent["recipe"]["dpo"]["beta"] == 0.1
    assert sent["recipe"]["data"]["train"][0]["path"].endswith("train.jsonl")
    assert b"hf_0123456789" not in file.read_bytes()


class Refuses(TensorBoardCallback):
    """A server that does not answer, from the start or from some step on."""

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
    (at,) = [i for i, each in enumerate(callbacks) if isinstance(each, Tracking)]
    callbacks[at] = Tracking("mlflow", Refuses(start), recipe)
    return trainer


def test_a_tracker_that_can_not_begin_is_told_before_the_first_step(recipe):
    trainer = with_broken(recipe, start=True)
    with pytest.raises(RecipeError) as caught:
        trainer.train()
    (problem,) = caught.value.problems
    assert problem.message == "mlflow can't begin: no route to tracker"
    assert problem.path == "logging.report_to"
    assert problem.hint.startswith("set MLFLOW_TRACKING_URI to a server that answers")
    assert trainer.state.global_step == 0


def test_a_tracker_that_fails_on_the_way_does_so_alone(recipe, capsys):
    trainer = with_broken(recipe, start=False)
    trainer.train()
    assert trainer.state.global_step == 2
    said = capsys.readouterr().out
    assert said.count("warning: mlflow is told nothing more, as it failed: no route") == 1
    assert "tracking: mlflow: welcome" in said
    assert "\x1b" not in said


def test_each_tracker_once(recipe_data, make_recipe):
    recipe_data["logging"] = {"report_to": ["wandb", "wandb"]}
    with pytest.raises(RecipeError, match="wandb is named twice"):
        make_recipe(recipe_data)
