"""The memory that a dry-run predicts, compared with torch.cuda.max_memory_allocated."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from prefcli.memory.dummy_data import one_token_a_word
from prefcli.memory.fake_models import Architectures
from prefcli.model import detect_device
from prefcli.recipe import load
from prefcli.training.simulation import simulate_run_step
from scripts.bench.memory import counted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")

LENGTH, BATCH = 512, 4
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=8,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=2,
)
WHOLE = {"training": {"gradient_checkpointing": False}}
CASES = {
    "full": {},
    "full-whole": WHOLE,
    "full-fused": {"training": {"optim": "adamw_torch_fused"}},
    "lora": {"lora": {"rank": 16}},
    "lora-whole": {"lora": {"rank": 16}, **WHOLE},
    "qlora": {"lora": {"rank": 16}, "model": {"quantization": "4bit"}},
    "precomputed": {"reference": {"precompute": True}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(CONFIG).save_pretrained(path)
    one_token_a_word().save_pretrained(path)
    sides = {side: " " + " ".join(["a"] * n) for side, n in (("chosen", 510), ("rejected", 509))}
    rows = [json.dumps({"prompt": "a", **sides}) + "\n"] * (4 * BATCH)
    (path / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CASES)
def test_predicted_memory_equals_allocated_memory(folder, tmp_path, name):
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    data = {
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(folder)},
        "dpo": {},
        "data": {
            "train": {"path": str(folder / "pairs.jsonl")},
            "max_length": LENGTH,
            "checks": {"duplicates": {"warn": None}},
        },
        "training": {
            "global_batch_size": 2 * BATCH,
            "per_device_train_batch_size": BATCH,
            "max_steps": 3,
            "warmup_steps": 0,
            "gradient_checkpointing": True,
        },
        "performance": {"shared_prefix": "off"},  # the prediction is for trl's own forward
    }
    for section, changes in CASES[name].items():
        data[section] = {**data.get(section, {}), **changes}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load(str(file)).recipe
    predicted = simulate_run_step(
        recipe, recipe.dpo, Architectures(CONFIG), detect_device(), length=LENGTH
    )
    assert predicted.highest.total == pytest.approx(counted(recipe, recipe.dpo), rel=0.1)
