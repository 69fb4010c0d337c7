"""A merged adapter: the model of base and adapter, in plain transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli.errors import RecipeError
from prefcli.evaluation import merge as merging
from prefcli.evaluation.merge import merge
from tests.support.limits import file_size_limit

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
CASES = {
    "lora": PLAIN,
    "dora": {**PLAIN, "use_dora": True},
    "rslora": {**PLAIN, "use_rslora": True},
    "embeddings": {**PLAIN, "modules_to_save": ["embed_tokens"]},
}


def tied(model_folder, target):
    """Copy a model with its output head tied to the embeddings."""
    shutil.copytree(model_folder, target)
    config = json.loads((target / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(target, tie_word_embeddings=True)
    model.save_pretrained(target)
    assert model.config.tie_word_embeddings != config["tie_word_embeddings"]
    return target


def noisy_adapter(base, folder, **config):
    """Save an adapter of noise and its tokenizer; return its folder."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model):
    return model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.mark.parametrize(
    ("name", "is_tied"), [*((name, False) for name in CASES), ("lora", True), ("embeddings", True)]
)
def test_merge_equals_base_and_adapter(tiny_model, tmp_path, name, is_tied):
    base = tied(tiny_model, tmp_path / "base") if is_tied else tiny_model
    adapter = noisy_adapter(base, tmp_path / "adapter", **CASES[name])
    result = merge(str(adapter), tmp_path / "merged", torch.float32)
    assert result.effect > 0.01
    assert result.error < 1e-5
    assert result.rounding == 0
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged_model), logits(expected), atol=1e-5, rtol=1e-5)
    greedy = {"do_sample": False, "max_new_tokens": 8, "input_ids": torch.tensor([[5, 6, 7]])}
    assert torch.equal(merged_model.generate(**greedy), expected.generate(**greedy))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_merge_of_a_stacked_checkpoint_adds_both_adapters(tiny_model, tmp_path):
    below = noisy_adapter(tiny_model, tmp_path / "below", **PLAIN)
    above = noisy_adapter(tiny_model, tmp_path / "above", **{**PLAIN, "r": 2})
    file = above / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(below)}))
    merge(str(above), tmp_path / "merged", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for folder in (below, above):
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged_model.dtype == torch.bfloat16
    torch.testing.assert_close(logits(merged_model.float()), logits(model), atol=0.05, rtol=0.05)


def test_merge_that_is_not_exact_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    adapter = noisy_adapter(tiny_model, tmp_path / "adapter", **PLAIN)
    monkeypatch.setattr(merging, "EXACT", 0.0)
    with pytest.raises(RecipeError) as caught:
        merge(str(adapter), tmp_path / "merged", torch.float32)
    assert caught.value.problems[0].code == "MDL035"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_merge_into_a_quantized_base_is_refused(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    adapter = noisy_adapter(base, tmp_path / "adapter", **PLAIN)
    file = base / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(config))
    with pytest.raises(RecipeError) as caught:
        merge(str(adapter), tmp_path / "merged", torch.float32)
    assert caught.value.problems[0].code == "MDL036"


def test_merge_onto_a_full_disk_is_an_error_and_leaves_nothing(tiny_model, tmp_path):
    adapter = noisy_adapter(tiny_model, tmp_path / "adapter", **PLAIN)
    with file_size_limit(10_000), pytest.raises(RecipeError) as caught:
        merge(str(adapter), tmp_path / "out" / "merged", torch.float32)
    (problem,) = caught.value.problems
    assert problem.code == "ENV051"
    assert "merged: a file exceeds the allowed size" in problem.message
    assert [*(tmp_path / "out").glob("*")] == []
