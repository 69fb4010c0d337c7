"""The sum of two adapters, against merging one after the other into the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from prefcli.model.adapter_merge import sum_adapters

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
FIRST_LAYER = "layers.0.self_attn.q_proj"
CASES = {
    "other modules": (PLAIN, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}),
    "rank pattern": ({**PLAIN, "rank_pattern": {FIRST_LAYER: 7}}, {**PLAIN, "r": 2}),
    "alpha pattern": (PLAIN, {**PLAIN, "alpha_pattern": {FIRST_LAYER: 3}}),
    "rslora first": ({**PLAIN, "use_rslora": True}, PLAIN),
    "rslora second": (PLAIN, {**PLAIN, "use_rslora": True}),
    "one layer": ({**PLAIN, "layers_to_transform": [0]}, PLAIN),
}


@pytest.fixture
def base(tiny_model):
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def adapters(base, tmp_path):
    """Save two adapters of noise and return their folders."""

    def make(*configs: dict) -> list[Path]:
        folders = []
        for index, config in enumerate(configs):
            model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **config))
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data = 0.1 * torch.randn_like(parameter)
            folders.append(tmp_path / f"adapter-{index}")
            model.save_pretrained(folders[-1])
        return folders

    return make


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits


def merged_logits(base, folders) -> torch.Tensor:
    model = base()
    for folder in folders:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return logits(model)


@pytest.mark.parametrize("configs", CASES.values(), ids=CASES)
def test_sum_adapters_equals_merging_one_after_the_other(base, adapters, configs, tmp_path):
    first, second = adapters(*configs)
    both = Path(shutil.copytree(second, tmp_path / "sum"))
    sum_adapters(first, both)
    summed = logits(PeftModel.from_pretrained(base(), both))
    torch.testing.assert_close(summed, merged_logits(base, [first, second]), atol=1e-5, rtol=1e-5)


def test_add_weighted_adapter_of_peft_scales_rslora_wrongly(base, adapters):
    """Check a bug of peft; once it is fixed, sum_adapters may call add_weighted_adapter."""
    folders = adapters({**PLAIN, "use_rslora": True}, PLAIN)
    model = PeftModel.from_pretrained(base(), folders[0], adapter_name="first")
    model.load_adapter(folders[1], "second")
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    assert (logits(model) - merged_logits(base, folders)).abs().max() > 1e-3
