"""Runs on a GPU: mixed precision and quantized models."""

from __future__ import annotations

import pytest
import torch

from prefcli.model import detect_device
from prefcli.training.run import train
from tests.support.tiny_runs import metric_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_train_on_a_gpu_uses_bfloat16_autocast(recipe_data, make_recipe, lora):
    if lora:
        recipe_data["lora"] = lora
    recipe = make_recipe(recipe_data).recipe
    device = detect_device()
    assert device.autocast(recipe.model) == device.bfloat16
    expected = torch.bfloat16 if lora and device.bfloat16 else torch.float32
    assert device.dtype(recipe.model, frozen=recipe.trains_adapter) == expected
    train(recipe, recipe.dpo)
    assert metric_rows(recipe.output_dir)[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-2)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_train_quantized_model_with_sft_mix_starts_at_log_2(
    recipe_data, make_recipe, quantization, tmp_path
):
    pytest.importorskip("bitsandbytes")
    recipe_data["model"]["quantization"] = quantization
    recipe_data["lora"] = {"rank": 4}
    recipe_data["sft_mix"] = {"data": recipe_data["data"]["train"]}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert metric_rows(recipe.output_dir)[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-2)
