"""A run fails if its saved model differs from the trained one."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations import deepspeed

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import ExitCode, PrefcliError
from prefcli.training import final_model
from prefcli.training import verify_model as verify_module
from prefcli.training.run import train

FULL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def test_train_prints_and_records_the_verification(recipe_data, make_recipe, capsys):
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    # Two layers of nine tensors, the embeddings, the last norm and the head.
    line = "model/ reads back: 21 tensors, 37.8 k parameters, log-probabilities of 4 rows within"
    assert line in capsys.readouterr().out
    record = RunDir(recipe.output_dir).read_run()["model"]
    assert record.items() >= {"tensors": 21, "parameters": 37792}.items()
    assert record["max_difference"] < 1e-6


@pytest.mark.parametrize(
    "change",
    ["tied", "stack", pytest.param("continue", marks=pytest.mark.slow), "bfloat16", "dora"],
)
def test_verify_model_accepts_models_and_adapters_of_all_kinds(
    recipe_data, make_recipe, tiny_model, tmp_path, change
):
    if change == "tied":
        model = tmp_path / "tied"
        shutil.copytree(tiny_model, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        recipe_data["model"]["name_or_path"] = str(model)
    elif change == "bfloat16":
        recipe_data["model"]["dtype"] = "bfloat16"
    elif change == "dora":
        recipe_data["lora"] = {"rank": 2, "use_dora": True}
    else:
        recipe_data["lora"] = {"rank": 2}
        first = make_recipe(recipe_data, f"output_dir={tmp_path / 'sft'}").recipe
        train(first, first.sft)
        recipe_data["model"] = {"name_or_path": str(tmp_path / "sft" / "model"), "adapter": change}
        if change == "continue":
            del recipe_data["lora"]
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    record = RunDir(recipe.output_dir).read_run()["model"]
    assert record["max_difference"] < (1e-2 if change == "bfloat16" else 1e-5)


class _Config:
    """The DeepSpeed config that transformers stores under ZeRO-3."""

    config = {"zero_optimization": {"stage": 3}}  # noqa: RUF012

    def is_zero3(self):
        return True


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_verify_model_under_zero3_loads_in_one_process(recipe_data, make_recipe, monkeypatch, lora):
    """Loading in parts is a collective, and the other processes do not take part."""

    def collective(*args, **kwargs):
        raise AssertionError("the other processes do not load")

    engine, zero = types.ModuleType("deepspeed"), types.ModuleType("deepspeed.zero")
    engine.__spec__ = importlib.machinery.ModuleSpec("deepspeed", None)
    zero.Init = zero.GatheredParameters = collective
    engine.zero = zero
    monkeypatch.setitem(sys.modules, "deepspeed", engine)
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    config, real = _Config(), final_model.verify_model

    def verify(*args, **kwargs):
        deepspeed.set_hf_deepspeed_config(config)
        try:
            result = real(*args, **kwargs)
            assert deepspeed.is_deepspeed_zero3_enabled()
        finally:
            deepspeed.unset_hf_deepspeed_config()
        return result

    monkeypatch.setattr(final_model, "verify_model", verify)
    if lora:
        recipe_data["lora"] = lora
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert RunDir(recipe.output_dir).read_run()["model"]["max_difference"] < 1e-5


@pytest.mark.parametrize(("noise", "passes"), [(0.1, True), (1.0, False)])
def test_verify_model_in_bfloat16_tolerates_rounding_only(
    recipe_data, make_recipe, monkeypatch, noise, passes
):
    """Use log-probabilities from 0 to -20, whose noise in 16 bits is 0.1 nats."""
    recipe_data["model"]["dtype"] = "bfloat16"
    draw = torch.Generator().manual_seed(0)

    def coarse(model, rows, *, autocast):
        scores = []
        for row in rows:
            exact = torch.linspace(0, -20, len(row) - 1)
            scores.append(exact + noise * torch.randn(len(row) - 1, generator=draw))
        return scores

    for module in (final_model, verify_module):
        monkeypatch.setattr(module, "score_rows", coarse)
    recipe = make_recipe(recipe_data).recipe
    if passes:
        train(recipe, recipe.dpo)
        assert RunDir(recipe.output_dir).read_run()["model"]["max_difference"] > 0.05
    else:
        with pytest.raises(PrefcliError, match="differ from those of the trained model"):
            train(recipe, recipe.dpo)


def harm(monkeypatch, change) -> None:
    """Change the weights after they are written and before they are verified."""
    real = final_model.write_model

    def write(trainer, place):
        real(trainer, place)
        change(Path(place))

    monkeypatch.setattr(final_model, "write_model", write)


def rewrite(folder: Path, change) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def _zero_size(weights):
    weights["model.norm.weight"] = torch.empty(0)


def _nan(weights):
    weights["model.norm.weight"][3] = float("nan")


def _remove(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def _add_little(weights):
    weights["model.norm.weight"][3] += 1e-6


def _adapter_of_zeros(weights):
    for tensor in weights.values():
        tensor.zero_()


@pytest.mark.parametrize(
    ("change", "lora", "what"),
    [
        (lambda f: rewrite(f, _zero_size), False, "model.norm.weight is empty"),
        (lambda f: rewrite(f, _nan), False, "model.norm.weight has values that are not finite"),
        (
            lambda f: rewrite(f, _remove),
            False,
            "it holds 35,744 parameters, and 37,792 were",
        ),
        (
            lambda f: rewrite(f, _add_little),
            False,
            "its model.norm.weight is not what was",
        ),
        (lambda f: (f / FULL).write_bytes(b"short"), False, "model.safetensors can't be read"),
        (lambda f: (f / FULL).unlink(), False, "it holds no weights"),
        (lambda f: (f / "config.json").unlink(), False, "it lacks config.json"),
        (lambda f: (f / "chat_template.jinja").unlink(), False, "its chat template is not the"),
        (lambda f: rewrite(f, _adapter_of_zeros), True, "is not what was trained"),
        (lambda f: (f / "adapter_config.json").unlink(), True, "it lacks adapter_config.json"),
    ],
)
def test_verify_model_damaged_model_fails_the_run(
    recipe_data, make_recipe, monkeypatch, change, lora, what
):
    if lora:
        recipe_data["lora"] = {"rank": 2}
    recipe = make_recipe(recipe_data).recipe
    harm(monkeypatch, change)
    with pytest.raises(PrefcliError, match=what) as error:
        train(recipe, recipe.dpo)
    assert error.value.exit_code == ExitCode.BUG
    run = RunDir(recipe.output_dir)
    assert not run.model.exists()
    assert (run.path / "model.partial").is_dir()
    assert run.read_run()["status"] == "failed"
    assert what in run.read_run()["why"]


def test_verify_model_compares_outputs_as_well(recipe_data, make_recipe, monkeypatch):
    """Check a model whose values cannot be compared, as with shards, by its outputs."""
    recipe = make_recipe(recipe_data).recipe
    monkeypatch.setattr("prefcli.training.verify_model.check_values", lambda *args: None)
    harm(monkeypatch, lambda folder: rewrite(folder, lambda w: w["model.norm.weight"].mul_(1.01)))
    with pytest.raises(PrefcliError, match="differ from those of the trained model"):
        train(recipe, recipe.dpo)


def test_verify_model_too_large_to_load_prints_a_note(
    recipe_data, make_recipe, monkeypatch, capsys
):
    recipe = make_recipe(recipe_data).recipe
    monkeypatch.setattr("prefcli.training.verify_model.SPARE_BYTES", 10**15)
    train(recipe, recipe.dpo)
    assert "not loaded for a trial: it needs 1000000 GB" in capsys.readouterr().out
    assert RunDir(recipe.output_dir).read_run()["model"]["max_difference"] is None
