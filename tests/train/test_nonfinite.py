"""A non-finite number stops the run at once, names its rows, and leaves no final model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from prefcli.errors import DivergedError, ExitCode
from prefcli.training import run as run_module
from prefcli.training.run import train
from tests.support.tiny_runs import UNTIMED, metric_rows, trainer_of


class Poison(TrainerCallback):
    """Sets weights to a value before a step."""

    def __init__(self, value: float, step: int) -> None:
        self.value, self.step = value, step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(self.value)


@pytest.fixture
def with_callback(monkeypatch):
    """Add a callback to the trainer that a run makes."""

    def use(callback: TrainerCallback) -> None:
        stock = run_module.make_trainer

        def make(*args, **kwargs):
            trainer, effective = stock(*args, **kwargs)
            trainer.add_callback(callback)
            return trainer, effective

        monkeypatch.setattr(run_module, "make_trainer", make)

    return use


def diverged(recipe, name: str) -> tuple[str, dict]:
    with pytest.raises(DivergedError) as caught:
        train(recipe, recipe.methods[name])
    assert caught.value.exit_code == ExitCode.DIVERGED
    folder = Path(recipe.output_dir)
    assert not (folder / "model").exists()
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "diverged"
    assert run["why"] == str(caught.value)
    return str(caught.value), run


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
def test_nonfinite_loss_names_the_rows_of_its_batch(recipe_data, make_recipe, with_callback, name):
    """Check a step between two logging steps."""
    recipe_data["training"] |= {"max_steps": 6, "logging_steps": 50, "save_steps": 4}
    recipe = make_recipe(recipe_data).recipe
    with_callback(Poison(math.nan, step=2))
    message, _ = diverged(recipe, name)
    assert "nan at step 3; rows of the batch: " in message
    assert message.count("train.jsonl: row") == 4
    assert not list(Path(recipe.output_dir).glob("checkpoint-*"))


def test_nonfinite_loss_at_the_first_step_does_not_blame_the_learning_rate(
    recipe_data, make_recipe, with_callback
):
    recipe = make_recipe(recipe_data).recipe
    with_callback(Poison(math.nan, step=0))
    with pytest.raises(DivergedError) as caught:
        train(recipe, recipe.sft)
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == ("TRN063", "data.train")
    assert "the learning rate is not the cause" in problem.hint


def test_nonfinite_gradient_stops_before_the_optimizer_step(
    recipe_data, make_recipe, with_callback, monkeypatch
):
    """Check a finite loss with an infinite gradient, which must not reach the optimizer."""
    recipe_data["training"] |= {"max_steps": 4, "logging_steps": 50}
    recipe = make_recipe(recipe_data).recipe
    steps = []

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                weight = next(model.parameters())
                weight.register_hook(lambda grad: grad * math.inf)

        def on_optimizer_step(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    with_callback(Spoil())
    message, _ = diverged(recipe, "dpo")
    assert "the gradient norm is" in message
    assert "at step 2" in message
    assert message.count("train.jsonl: row") == 8  # both micro-batches of the step
    assert steps == [0]


def test_nonfinite_log_probability_with_a_finite_loss_stops_the_run(
    recipe_data, make_recipe, with_callback, monkeypatch
):
    """Check an infinite log-ratio, whose loss is 0, since sigmoid(inf) is 1."""
    recipe_data["training"] |= {"max_steps": 2, "logging_steps": 50}
    recipe = make_recipe(recipe_data).recipe
    _, trainer_class = recipe.dpo.trl_classes()
    stock = trainer_class._compute_loss

    def broken(self, model, inputs, return_outputs):
        loss = stock(self, model, inputs, return_outputs)
        if self.model.training:
            self._metrics["train"]["logps/rejected"][-1] = -math.inf
        return loss

    monkeypatch.setattr(trainer_class, "_compute_loss", broken)
    message, _ = diverged(recipe, "dpo")
    assert "logps/rejected is -inf at step 1; rows of the batch" in message


def test_nonfinite_sft_mix_loss_names_the_demonstrations(
    recipe_data, make_recipe, with_callback, tmp_path
):
    row = {"prompt": "say", "completion": " red"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    recipe_data["sft_mix"] = {"data": {"path": str(tmp_path / "d.jsonl")}, "fraction": 0.5}
    recipe_data["training"]["logging_steps"] = 50
    recipe = make_recipe(recipe_data).recipe
    from prefcli.training.mixins import sft_mix

    stock = sft_mix.SftMixMixin._nll
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft_mix.SftMixMixin, "_nll", lambda *a: stock(*a) * math.nan)
        message, _ = diverged(recipe, "dpo")
    assert "sft_mix" in message
    assert "d.jsonl: row 1" in message


def test_nonfinite_loss_keeps_the_metrics_before_it(recipe_data, make_recipe, with_callback):
    recipe_data["training"] |= {"max_steps": 6}
    recipe = make_recipe(recipe_data).recipe
    with_callback(Poison(math.nan, step=3))
    diverged(recipe, "dpo")
    assert [row["step"] for row in metric_rows(recipe.output_dir) if "loss" in row] == [1, 2, 3]


def test_nonfinite_row_that_kto_skips_in_its_metrics_stops_the_run(
    recipe_data, make_recipe, monkeypatch
):
    """Check one NaN row, which trl's KTO excludes from its means."""
    recipe_data["training"] |= {"max_steps": 2, "logging_steps": 50}
    recipe = make_recipe(recipe_data).recipe
    stock = run_module.make_trainer

    def make(*args, **kwargs):
        trainer, effective = stock(*args, **kwargs)
        forward = trainer.model.forward

        def broken(*args, **kwargs):
            output = forward(*args, **kwargs)
            if torch.is_grad_enabled():
                output.log_probs = output.log_probs.clone()
                output.log_probs[0, -1] = math.nan
            return output

        trainer.model.forward = broken
        return trainer, effective

    monkeypatch.setattr(run_module, "make_trainer", make)
    message, _ = diverged(recipe, "kto")
    assert "at step 1; rows of the batch" in message


class Waits(TorchDispatchMode):
    """Counts the operations of a step for which the host waits, if tensors are on a GPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.counts["numbers"] += 1
        if function is torch.ops.aten.index.Tensor:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            self.counts["masks"] += bool(masks)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "numbers", "masks"), [("dpo", (0, 15), 2), ("sft", (0, 5), 0), ("orpo", (1, 12), 2)]
)
def test_micro_batch_reads_few_numbers_from_the_device(
    recipe_data, make_recipe, name, numbers, masks
):
    """Count the numbers that trl reads per micro-batch: on a GPU, where reads are deferred, and
    elsewhere. Selecting by a mask waits as well."""
    recipe = make_recipe(recipe_data, "training.max_steps=1").recipe
    logs = []
    for deferred, expected in zip((True, False), numbers, strict=True):
        trainer, _ = trainer_of(recipe, name)
        trainer.args.save_strategy = "no"
        trainer.context = dataclasses.replace(trainer.context, defers_reads=deferred)
        waits, step = Waits(), trainer.training_step

        def watched(*args, waits=waits, step=step):
            with waits:
                return step(*args)

        trainer.training_step = watched
        trainer.train()
        logs.append(trainer.state.log_history)
        micro_batches = trainer.args.gradient_accumulation_steps
        assert waits.counts["numbers"] == expected * micro_batches
        assert waits.counts["masks"] <= masks * micro_batches
    deferred_log, log = (next(row for row in rows if "loss" in row) for rows in logs)
    for key in log.keys() - {key for key in log if key.endswith(UNTIMED)}:
        assert deferred_log[key] == pytest.approx(log[key], rel=1e-6, abs=1e-8), key


def test_check_values_reads_the_device_once_per_step(recipe_data, make_recipe):
    """Read all numbers of all micro-batches as one list."""
    trainer, _ = trainer_of(make_recipe(recipe_data).recipe, "dpo")
    values = {"the loss": torch.tensor(0.5), "a log-probability": torch.tensor(-40.0)}
    waits = Waits()
    with waits:
        trainer.must_be_finite(values, list)
        trainer.must_be_finite(values, list)
        trainer.check_values()
    assert not waits.counts["numbers"]
