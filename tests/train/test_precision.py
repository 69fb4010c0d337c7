"""Casting once gives the numbers that autocast gives in each pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from prefcli.model import Device
from prefcli.model.precision import keep_adapter_inputs, round_projections
from prefcli.training import run as run_module
from prefcli.training.run import train
from prefcli.training.trainer import make_trainer
from tests.support.scored_rows import batch_of, pairs, tiny


def log_probabilities(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        batch = batch_of(pairs())
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt_neox", "phi", "mixtral"])
def test_round_projections_changes_no_product_under_autocast(family, config):
    model = tiny(family, **config).eval()
    before = log_probabilities(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    round_projections(model, torch.bfloat16)
    assert torch.equal(log_probabilities(model), before)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < size
    assert model.get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_keep_adapter_inputs_changes_no_product_under_autocast(dora):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
    base = tiny("llama").bfloat16()
    model = get_peft_model(base, config).eval()
    before = log_probabilities(model)
    casts = []
    handle = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"]
    handle.register_forward_pre_hook(lambda module, args: casts.append(args[0].dtype))
    log_probabilities(model)
    keep_adapter_inputs(model)
    assert torch.equal(log_probabilities(model), before)
    assert casts[0] == torch.float32
    assert (casts[-1] == torch.bfloat16) != dora


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_run_under_autocast_casts_once(recipe_data, make_recipe, monkeypatch, lora):
    """The whole run, with samples and the distance to the reference, on a CPU in bfloat16."""
    trainers = []

    def make(*args, **kwargs):
        trainers.append(make_trainer(*args, **kwargs))
        return trainers[0]

    device = Device("cpu", "a CPU that computes in bfloat16", bfloat16=True)
    monkeypatch.setattr(run_module, "detect_device", lambda: device)
    monkeypatch.setattr(run_module, "make_trainer", make)
    recipe_data["samples"] = {"prompts": 1, "max_new_tokens": 4}
    if lora:
        recipe_data["lora"] = lora
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    trainer = trainers[0][0]
    if lora:
        layers = [m for m in trainer.model.modules() if hasattr(m, "cast_input_dtype_enabled")]
        assert layers
        assert not any(layer.cast_input_dtype_enabled for layer in layers)
        (samples,) = (Path(recipe.output_dir) / "samples.jsonl").read_text().splitlines()[-1:]
        assert "greedy" in samples
    else:
        projection = trainer.ref_model.model.layers[0].mlp.up_proj.weight
        assert projection.dtype == torch.bfloat16
        assert trainer.model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text("utf-8"))
    assert run["status"] == "finished"
    assert run["eval"]["last"]["eval_reference_kl"] < 0.1


def test_whole_layers_are_trained_and_continued_in_float32_under_autocast(
    recipe_data, make_recipe, monkeypatch, tmp_path
):
    """The base is in bfloat16; the run compares what it saved bit for bit."""
    device = Device("cpu", "a CPU that computes in bfloat16", bfloat16=True)
    monkeypatch.setattr(run_module, "detect_device", lambda: device)
    recipe_data["lora"] = {"rank": 2, "modules_to_save": ["embed_tokens", "lm_head"]}
    first = make_recipe(recipe_data).recipe
    train(first, first.sft)
    del recipe_data["lora"]
    recipe_data["model"] = {"name_or_path": f"{first.output_dir}/model", "adapter": "continue"}
    second = make_recipe(recipe_data, f"output_dir={tmp_path / 'second'}").recipe
    train(second, second.dpo)
    for recipe in (first, second):
        weights = load_file(f"{recipe.output_dir}/model/adapter_model.safetensors")
        assert weights["base_model.model.lm_head.weight"].dtype == torch.float32
