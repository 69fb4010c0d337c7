"""The bytes of a step: simulated with fake tensors, and counted on real ones."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from prefcli.evaluation.generate import generate_ids
from prefcli.evaluation.on_policy.sampling import DrawPerRow
from prefcli.memory.fake_generation import run_generation
from prefcli.memory.fake_models import Architectures
from prefcli.memory.profiler import Tracker
from prefcli.model import Device, detect_device, load_tokenizer
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Model
from prefcli.training.simulation import extrapolate_run_step, simulate_run_step
from scripts.bench.memory import counted
from tests.support.tiny_runs import ANYTHING, write_jsonl

LENGTH, BATCH = 64, 4

CASES = {
    "dpo": ("dpo", {}),
    "dpo-lora": ("dpo", {"lora.rank": 8}),
    "kto": ("kto", {}),
    "orpo-one-batch": ("orpo", {"training.global_batch_size": BATCH}),
    "simpo-whole": ("simpo", {"training.gradient_checkpointing": False}),
    "dpo-mixed": ("dpo", {"sft_mix.fraction": 0.2}),
}
SLOW = ("kto", "orpo-one-batch", "simpo-whole", "dpo-mixed", "dpo-lora")


@pytest.fixture(scope="module")
def small(tiny_model, tmp_path_factory):
    """Save a model large enough that weights, activations and logits all matter."""
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ).save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def words(tokenizer, count: int) -> str:
    """Return a text of so many tokens."""
    text = " red" * count
    assert len(tokenizer(text)["input_ids"]) == count
    return text


@pytest.fixture
def recipe_of(small, tmp_path):
    def make(name: str):
        method, changes = CASES[name]
        tokenizer = load_tokenizer(Model(name_or_path=str(small)))
        prompt, longer, shorter = (words(tokenizer, n) for n in (1, LENGTH - 2, LENGTH - 3))
        count = 4 * BATCH
        rows = {
            "pairs": [{"prompt": prompt, "chosen": longer, "rejected": shorter}] * count,
            "kto": [
                {"prompt": prompt, "completion": longer if i % 2 else shorter, "label": i % 2 == 1}
                for i in range(count)
            ],
            "sft": [{"prompt": prompt, "completion": longer}] * count,
        }
        data = {
            "output_dir": str(tmp_path / "run"),
            "model": {"name_or_path": str(small)},
            method: {},
            "data": {
                "train": {
                    "path": str(
                        write_jsonl(
                            tmp_path / "rows.jsonl",
                            rows.get(method, rows["pairs"]),
                        )
                    )
                },
                "max_length": LENGTH,
                "checks": ANYTHING,
            },
            "training": {
                "global_batch_size": 2 * BATCH,
                "per_device_train_batch_size": BATCH,
                "max_steps": 2,
                "warmup_steps": 0,
                "gradient_checkpointing": True,
            },
            "performance": {"shared_prefix": "off"},  # the simulation is of trl's own forward
        }
        if method not in ("sft", "orpo"):
            data["check_sft"] = {"on_fail": "skip"}
        if "sft_mix.fraction" in changes:
            path = write_jsonl(tmp_path / "mix.jsonl", [{"text": words(tokenizer, LENGTH - 1)}] * 9)
            data["sft_mix"] = {"data": {"path": str(path)}}
        for key, value in changes.items():
            section, _, last = key.partition(".")
            data.setdefault(section, {})[last] = value
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(data), encoding="utf-8")
        recipe = load(str(file)).recipe
        return recipe, recipe.methods[method]

    return make


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's own test is in tests/gpu")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES],
)
def test_simulated_step_holds_the_bytes_of_a_real_one(recipe_of, name):
    recipe, method = recipe_of(name)
    resolved, _ = method.for_labels(8, 8)
    config = AutoConfig.from_pretrained(recipe.model.name_or_path)
    simulated = simulate_run_step(
        recipe, resolved, Architectures(config), detect_device(), length=LENGTH
    )
    assert simulated.highest.total == pytest.approx(counted(recipe, method), rel=0.05)


def test_simulated_generation_holds_the_bytes_of_a_real_one(small):
    model, rows, prompt, completion = LlamaForCausalLM.from_pretrained(small), 16, 40, 12
    with Tracker((model.config.vocab_size,)) as real:
        generate_ids(
            model,
            [[3 + row % 7] * (prompt - row % 3) for row in range(rows)],
            2,
            completion,
            [],
            processors=[DrawPerRow(range(rows), completion, 1.0, 1.0)],
            do_sample=False,
        )
    with Tracker((model.config.vocab_size,)) as simulated:
        trainer = SimpleNamespace(model=model, accelerator=SimpleNamespace(autocast=nullcontext))
        run_generation(trainer, rows, prompt, completion)
    assert simulated.peak.total == pytest.approx(real.peak.total, rel=0.05)


LLAMA_1B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
H100 = {
    "full": ({}, 41.513),
    "full, checkpointing": ({"gradient_checkpointing": True}, 24.635),
    "LoRA": ({}, 20.744),
}
"""GiB that torch counted in a step of dpo with rows of 1,023 tokens, torch 2.11.

With LoRA, gradients that are kept between micro-batches are too small to see, so one is simulated.
"""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "LoRA")) for n in H100],
)
def test_extrapolated_step_matches_the_bytes_counted_on_a_gpu(name):
    changes, counted_there = H100[name]
    recipe = Recipe.model_validate(
        {
            "output_dir": "nowhere",
            "model": {"name_or_path": "nowhere"},
            "dpo": {},
            "data": {"train": {"path": "nowhere.jsonl"}, "max_length": 1023},
            "training": {
                "global_batch_size": 4 if name == "LoRA" else 8,
                "per_device_train_batch_size": 4,
                "gradient_checkpointing": False,
                **changes,
            },
            "lora": {"rank": 16} if name == "LoRA" else None,
        }
    )
    gpu = Device("cuda", "a GPU", bfloat16=True)
    simulated = extrapolate_run_step(
        recipe, recipe.methods["dpo"], Architectures(LLAMA_1B), gpu, length=1023
    )
    assert simulated.highest.total / 2**30 == pytest.approx(counted_there, rel=0.02)
