"""The simulated step of a dry-run for other kinds of models, and the advice on memory."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from prefcli.memory import step_memory
from prefcli.methods import METHODS
from tests.support.tiny_runs import pairs, write_jsonl

pytestmark = pytest.mark.memory


@pytest.fixture
def recipe_data(recipe_data):
    """A recipe with one micro-batch per step: a second takes as long to simulate."""
    recipe_data["training"]["global_batch_size"] = 4
    return recipe_data


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """Save an adapter, which peft loads frozen unless it is trained further."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experts(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["continue", "merge", "stack"])
def test_dry_run_of_an_adapter_counts_its_parameters(recipe_data, dry_run, adapter, how):
    recipe_data["model"] = {"name_or_path": str(adapter), "adapter": how}
    if how == "stack":
        recipe_data["lora"] = {"rank": 2}
    code, document, _ = dry_run(recipe_data)
    assert (code, document["problems"]) == (0, [])
    # Of a layer: q and o (32, 32), k and v (32, 16), gate and up (32, 64), down (64, 32).
    sides = 2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64) + (64 + 32)
    rank = {"continue": 4, "stack": 2}.get(how)
    expected = 2 * rank * sides if rank else document["parameters"]
    assert document["trainable"] == expected
    assert document["memory"]["parts"]["optimizer"] >= 8 * expected
    assert document["disk"]["model"] == 4 * expected


def test_dry_run_of_mixture_of_experts_counts_all_weights(recipe_data, dry_run, experts):
    recipe_data["model"]["name_or_path"] = str(experts)
    code, document, _ = dry_run(recipe_data)
    assert (code, document["problems"]) == (0, [])
    assert document["memory"]["parts"]["weights"] >= 4 * document["parameters"]


def test_dry_run_of_experts_with_lora_adapts_linear_layers_only(recipe_data, dry_run, experts):
    recipe_data["model"]["name_or_path"] = str(experts)
    recipe_data["lora"] = {"rank": 2}
    code, document, printed = dry_run(recipe_data)
    assert (code, document["parts"]["experts"]["trained"]) == (0, 0)
    assert "no adapter on the routed experts" in printed


def test_dry_run_of_step_without_simulation_is_inconclusive(recipe_data, dry_run, monkeypatch):
    def refuses(*args, **kwargs):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(step_memory, "predict", refuses)
    code, document, printed = dry_run(recipe_data)
    assert "memory: the step could not be simulated (no such kernel)" in printed
    assert (code, document["will_run"]) == (2, None)
    assert document["unchecked"][0]["code"] == "TRN029"


def tokens(document) -> int:
    return document["memory"]["tokens"]


@pytest.mark.slow
def test_dry_run_simulates_the_longest_row(recipe_data, dry_run, tmp_path):
    """Check that the simulated row fills max_length if rows are sampled or packed."""
    assert tokens(dry_run(recipe_data)[1]) < 64
    assert tokens(dry_run(recipe_data, "dpo", "--sample", "5")[1]) == 64
    recipe_data["data"]["train"] = {
        "path": str(write_jsonl(tmp_path / "text.jsonl", [{"text": "red"}] * 30))
    }
    del recipe_data["data"]["eval"]
    assert tokens(dry_run(recipe_data, "sft")[1]) < 64
    assert tokens(dry_run(recipe_data, "sft", "sft.packing=true")[1]) == 64


def test_dry_run_of_sft_ignores_sft_mix(recipe_data, dry_run, tmp_path):
    """Check that sft_mix, which applies to preference methods, does not change the step of sft."""
    texts = str(write_jsonl(tmp_path / "text.jsonl", [{"text": "red"}] * 30))
    recipe_data["data"] |= {"train": {"path": texts}, "eval": {"path": texts}}
    plain = dry_run(recipe_data, "sft")[1]["memory"]
    recipe_data["sft_mix"] = {"fraction": 0.5, "data": {"path": texts}}
    assert dry_run(recipe_data, "sft")[1]["memory"] == plain


@pytest.mark.slow
def test_dry_run_cure_contains_only_needed_changes(recipe_data, dry_run, tmp_path):
    """Check that all changes are listed, and that the cure contains only those needed to fit."""
    rows = write_jsonl(tmp_path / "many.jsonl", pairs(64))
    recipe_data["data"]["train"]["path"] = str(rows)
    recipe_data["training"] |= {"global_batch_size": 64, "per_device_train_batch_size": 64}
    del recipe_data["kto"]  # which needs two rows per device
    ladder = dry_run(recipe_data, "dpo", "--gpu-memory", "1MiB")[1]
    assert ladder["cure"] == []  # the driver alone needs more
    changes = [step["change"] for step in ladder["remedies"]]
    assert "training.per_device_train_batch_size=1" in changes
    size = f"{ladder['memory']['needed'] // 2**20 - 50}MiB"
    code, document, _ = dry_run(recipe_data, "dpo", "--gpu-memory", size)
    assert code == 3
    (cure,) = document["cure"]
    assert document["problems"][0]["hint"] == f"this fits: {cure}"
    assert dry_run(recipe_data, "dpo", cure, "--gpu-memory", size)[0] == 0


@pytest.mark.slow
def test_dry_run_does_not_advise_invalid_batch_sizes(recipe_data, dry_run):
    """Check kto, which needs two rows per device, with nine rows per step."""
    recipe_data["training"] |= {"global_batch_size": 9, "per_device_train_batch_size": 3}
    for other in METHODS:
        if other != "kto":
            recipe_data.pop(other, None)
    document = dry_run(recipe_data, "kto", "--gpu-memory", "1MiB")[1]
    assert not [r for r in document["remedies"] if "batch_size" in r["change"]]
