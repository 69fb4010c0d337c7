"""What only a GPU can show. Skipped, and said so, where there is none."""

from __future__ import annotations

import pytest
import torch

from prefcli.model import detect_device
from prefcli.training.run import train
from tests.support.tiny_runs import metric_rows
from tests.train.conftest import (  # noqa: F401
    make_recipe,
    recipe_data,
    tiny_model,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_the_cpu_recipe_runs_in_mixed_precision(recipe_data, make_recipe, lora):  # noqa: F811
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
def test_a_quantised_base_with_a_mix(recipe_data, make_recipe, quantization, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    recipe_data["model"]["quantization"] = quantization
    recipe_data["lora"] = {"rank": 4}
    recipe_data["sft_mix"] = {"data": recipe_data["data"]["train"]}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert metric_rows(recipe.output_dir)[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-2)
