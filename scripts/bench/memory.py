#!/usr/bin/env python3
"""Compare the peak memory of a step that a dry-run predicts with the one this machine counts.

    python scripts/bench/memory.py [--hidden 256] [--layers 6] [--length 256] [--rows 4]

For each setting two real steps are trained on a random Llama by the code of a run. The count is
torch.cuda.max_memory_allocated on a GPU, and the allocations in torch's profiler on a CPU. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from prefcli.data.run_datasets import load_run_datasets
from prefcli.library_logging import quiet_libraries
from prefcli.memory.dummy_data import one_token_a_word
from prefcli.memory.fake_models import Architectures
from prefcli.methods import Method
from prefcli.model import detect_device, load_policy, load_tokenizer, to_device
from prefcli.recipe import Recipe, load
from prefcli.training.simulation import simulate_run_step
from prefcli.training.trainer import make_trainer

WHOLE = {"training.gradient_checkpointing": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo, no checkpointing": ("dpo", WHOLE),
    "dpo, fused optimizer": ("dpo", {"training.optim": "adamw_torch_fused"}),
    "dpo, LoRA": ("dpo", {"lora.rank": 16}),
    "dpo, LoRA, no checkpointing": ("dpo", {"lora.rank": 16, **WHOLE}),
    "dpo, QLoRA": ("dpo", {"lora.rank": 16, "model.quantization": "4bit"}),
    "kto": ("kto", {}),
    "orpo": ("orpo", {}),
    "sft, no checkpointing": ("sft", WHOLE),
}


def write_rows(folder: Path, length: int, count: int) -> None:
    """Write the same number of rows of `length` tokens for each kind."""
    longer, shorter = (" " + " ".join(["a"] * (length - n)) for n in (2, 3))
    rows: dict[str, list[dict[str, Any]]] = {
        "dpo": [{"prompt": "a", "chosen": longer, "rejected": shorter}] * count,
        "kto": [
            {"prompt": "a", "completion": longer if i % 2 else shorter, "label": bool(i % 2)}
            for i in range(count)
        ],
        "sft": [{"prompt": "a", "completion": longer}] * count,
    }
    for kind, kind_rows in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in kind_rows)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")


def recipe_of(folder: Path, case: str, length: int, batch: int) -> tuple[Recipe, Method]:
    method, changes = CASES[case]
    kind = method if method in ("kto", "sft") else "dpo"
    data: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(folder)},
        method: {},
        "data": {
            "train": {"path": str(folder / f"{kind}.jsonl")},
            "max_length": length,
            "checks": {"duplicates": {"warn": None}, "cut": {"error": None}},
        },
        "training": {
            "global_batch_size": 2 * batch,
            "per_device_train_batch_size": batch,
            "max_steps": 2,
            "warmup_steps": 0,
            "gradient_checkpointing": True,
        },
        # The dry-run simulates trl's own step.
        "performance": {"shared_prefix": "off"},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        data.setdefault(section, {})[name] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load(str(file)).recipe
    return recipe, recipe.methods[method]


def counted(recipe: Recipe, method: Method) -> int:
    """Return the peak of two real steps in bytes."""
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, method, tokenizer)
    method, _ = inputs.resolve_from_data(method)
    device = detect_device()

    def train() -> None:
        dtype = device.dtype(recipe.model, frozen=recipe.trains_adapter)
        policy = to_device(load_policy(recipe.model, dtype, recipe.seed), device)
        trainer, _ = make_trainer(
            recipe, method, device, policy, tokenizer, inputs, eval_on_start=False
        )
        trainer.train()

    gc.collect()
    if device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        train()
        gc.collect()
    allocations = [e for e in events.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    quiet_libraries()
    device = detect_device()
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
    )
    print(f"{device.name}, {platform.system()}, torch {torch.__version__}")
    print(f"{config.num_hidden_layers} layers of {config.hidden_size}, {options.vocabulary} tokens")
    print("| setting | predicted, MiB | counted, MiB | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LlamaForCausalLM(config).save_pretrained(folder)
        one_token_a_word().save_pretrained(folder)
        write_rows(folder, options.length, 4 * options.rows)
        for case in CASES:
            recipe, method = recipe_of(folder, case, options.length, options.rows)
            if recipe.model.quantization is not None and device.kind == "cpu":
                continue
            resolved, _ = method.for_labels(1, 1)
            run = simulate_run_step(
                recipe, resolved, Architectures(config), device, length=options.length
            )
            real = counted(recipe, method)
            guess = run.highest.total
            print(f"| {case} | {guess / 2**20:.1f} | {real / 2**20:.1f} | {guess / real:.3f} |")


if __name__ == "__main__":
    main()
