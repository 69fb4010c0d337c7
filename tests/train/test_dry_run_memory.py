"""What a dry-run rehearses for models of other kinds, and what it advises."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from prefcli.training import dry_run as story
from tests.support.tiny_runs import pairs, write_jsonl


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """Saved, as peft does it: frozen until it is trained on."""
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
def test_an_adapter_as_start(recipe_data, dry_run, adapter, how):
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


def test_experts_are_rehearsed(recipe_data, dry_run, experts):
    recipe_data["model"]["name_or_path"] = str(experts)
    code, document, _ = dry_run(recipe_data)
    assert (code, document["problems"]) == (0, [])
    assert document["memory"]["parts"]["weights"] >= 4 * document["parameters"]


def test_experts_take_no_dropout_on_adapters(recipe_data, dry_run, experts):
    """peft refuses it; that is told before a run, and by the run itself."""
    recipe_data["model"]["name_or_path"] = str(experts)
    recipe_data["lora"] = {"rank": 2}
    code, document, _ = dry_run(recipe_data)
    (problem,) = document["problems"]
    assert (code, problem["path"]) == (2, "lora.dropout")
    assert "write lora.dropout: 0" in problem["hint"]
    assert dry_run(recipe_data, "dpo", "lora.dropout=0")[0] == 0


def test_dry_run_of_step_without_simulation_is_inconclusive(recipe_data, dry_run, monkeypatch):
    def refuses(*args, **kwargs):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(story, "predict", refuses)
    code, document, said = dry_run(recipe_data)
    assert code == 0
    assert "memory: the step could not be simulated (no such kernel)" in said
    code, document, said = dry_run(recipe_data, "dpo", "--gpu-memory", "80GiB")
    assert (code, document["will_run"]) == (2, None)
    assert document["unchecked"][0]["code"] == "TRN029"


def tokens(document) -> int:
    return document["memory"]["tokens"]


def test_the_longest_row_is_rehearsed(recipe_data, dry_run, tmp_path):
    """Where not all rows were looked at, or several are joined, a row may fill max_length."""
    assert tokens(dry_run(recipe_data)[1]) < 64
    assert tokens(dry_run(recipe_data, "dpo", "--sample", "5")[1]) == 64
    recipe_data["data"]["train"] = {
        "path": str(write_jsonl(tmp_path / "text.jsonl", [{"text": "red"}] * 30))
    }
    del recipe_data["data"]["eval"]
    assert tokens(dry_run(recipe_data, "sft")[1]) < 64
    assert tokens(dry_run(recipe_data, "sft", "sft.packing=true")[1]) == 64


def test_nothing_is_mixed_into_demonstrations(recipe_data, dry_run, tmp_path):
    """sft_mix is of the recipe's other methods; a rehearsal of sft is the same with it."""
    texts = str(write_jsonl(tmp_path / "text.jsonl", [{"text": "red"}] * 30))
    recipe_data["data"] |= {"train": {"path": texts}, "eval": {"path": texts}}
    plain = dry_run(recipe_data, "sft")[1]["memory"]
    recipe_data["sft_mix"] = {"fraction": 0.5, "data": {"path": texts}}
    assert dry_run(recipe_data, "sft")[1]["memory"] == plain


def test_only_what_is_needed_is_advised(recipe_data, dry_run, tmp_path):
    """The ladder is shown as far as it goes; of its steps, those that fit together are named."""
    rows = write_jsonl(tmp_path / "many.jsonl", pairs(64))
    recipe_data["data"]["train"]["path"] = str(rows)
    recipe_data["training"] |= {"global_batch_size": 64, "per_device_train_batch_size": 64}
    del recipe_data["kto"]  # which needs two rows a device
    ladder = dry_run(recipe_data, "dpo", "--gpu-memory", "1MiB")[1]
    assert ladder["cure"] == []  # the driver's share alone is more
    changes = [remedy["change"] for remedy in ladder["remedies"]]
    assert "training.per_device_train_batch_size=1" in changes
    size = f"{ladder['memory']['needed'] // 2**20 - 50}MiB"
    code, document, _ = dry_run(recipe_data, "dpo", "--gpu-memory", size)
    assert code == 3
    (cure,) = document["cure"]
    assert document["problems"][0]["hint"] == f"this fits: {cure}"
    assert dry_run(recipe_data, "dpo", cure, "--gpu-memory", size)[0] == 0


def test_batches_that_the_recipe_would_refuse_are_not_advised(recipe_data, dry_run):
    """kto needs two rows a device, and nine are no multiple of two."""
    recipe_data["training"] |= {"global_batch_size": 9, "per_device_train_batch_size": 3}
    for other in ("sft", "dpo", "ipo", "orpo", "simpo"):
        del recipe_data[other]
    document = dry_run(recipe_data, "kto", "--gpu-memory", "1MiB")[1]
    assert not [r for r in document["remedies"] if "batch_size" in r["change"]]
