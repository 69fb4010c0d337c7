"""gradient_checkpointing: auto: on if the memory requires it, and printed in either case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from prefcli.memory import gradient_checkpointing
from prefcli.memory.activations import Policy, estimate_activation_memory
from prefcli.memory.fake_models import Architectures
from prefcli.memory.gradient_checkpointing import choose
from prefcli.model import Device, count_parameters
from prefcli.text import format_bytes
from prefcli.training.run import train
from prefcli.training.simulation import simulate_run_step
from tests.support.tiny_runs import trainer_of

GPU = Device("cuda", "a GPU", bfloat16=True)
CPU = Device("cpu", "a CPU", bfloat16=False)
GIB = 2**30
# 4 layers of 64, and an embedding and a head of 1000 tokens.
CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    eos_token_id=1,
    pad_token_id=2,
)
# 4 layers * (4 * 64 * 64 + 3 * 64 * 176 + 2 * 64) + 2 * 64 * 1000 + 64
PARAMETERS = 329_280


@pytest.fixture
def auto(recipe_data, make_recipe):
    def make(*overrides: str):
        overrides = ("training.gradient_checkpointing=auto", *overrides)
        return make_recipe(recipe_data, *overrides).recipe

    return make


def chosen(recipe, *, memory, strategy="single", machine=GPU, name="dpo", packed=None):
    method, _ = recipe.methods[name].for_labels(1, 1)
    return choose(
        recipe,
        method,
        machine,
        strategy,
        Policy(CONFIG),
        length=64,
        reference=PARAMETERS,
        memory=memory,
        packed=packed,
    )


def test_choose_is_on_if_the_memory_is_short(auto):
    recipe = auto()
    roomy, tight = chosen(recipe, memory=80 * GIB), chosen(recipe, memory=2**24)
    assert not roomy.on
    assert tight.on
    (line,) = roomy.lines()
    assert line.startswith("gradient checkpointing: off, ")
    assert line.endswith(" MiB of 80.0 GiB predicted without it")
    (line,) = tight.lines()
    assert line.endswith(" MiB of 16.0 MiB predicted without it; auto uses at most 13.6 MiB")


def test_choose_on_a_cpu_uses_half_of_the_memory(auto, monkeypatch):
    monkeypatch.setattr(
        gradient_checkpointing, "estimate_activation_memory", lambda *args, **kwargs: 3 * GIB
    )
    on = {g: chosen(auto(), memory=g * GIB, machine=CPU).on for g in (5, 6)}
    assert on == {5: True, 6: False}
    on = {g: chosen(auto(), memory=g * GIB).on for g in (3, 4)}
    assert on == {3: True, 4: False}  # 0.85 of 3 GiB are 2.55, of 4 are 3.4


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_choose_with_packed_rows_counts_their_tokens(auto, name):
    """Two pairs of 64 tokens are 256 with padding, and two rows 128."""
    recipe = auto("training.per_device_train_batch_size=2")
    method, _ = recipe.methods[name].for_labels(1, 1)

    def needed(packed):
        return estimate_activation_memory(
            recipe, method, GPU, Policy(CONFIG), length=64, reference=PARAMETERS, packed=packed
        )

    tokens = 256 if name == "dpo" else 128
    assert needed(64) < needed(None)
    assert needed(tokens) == pytest.approx(needed(None), rel=0.01)
    memory = round((needed(64) + needed(None)) / 2 / 0.85)
    on = {
        packed: chosen(recipe, memory=memory, name=name, packed=packed).on for packed in (64, None)
    }
    assert on == {64: False, None: True}


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2", "zero2", "zero3"])
def test_choose_for_a_sharded_model_is_on(auto, strategy):
    choice_made = chosen(auto(), memory=80 * GIB, strategy=strategy)
    assert choice_made.lines() == [f"gradient checkpointing: on, as always under {strategy}"]


def test_choose_with_unknown_memory_is_on(auto):
    assert chosen(auto(), memory=None).on


def test_choose_for_a_model_without_estimate_is_on(auto, monkeypatch):
    def fails(*args, **kwargs):
        raise NotImplementedError("no such operator\nand more")

    monkeypatch.setattr(gradient_checkpointing, "estimate_activation_memory", fails)
    (line,) = chosen(auto(), memory=80 * GIB).lines()
    assert line == (
        "gradient checkpointing: on, as its savings cannot be estimated (no such operator)"
    )


@pytest.mark.parametrize("choice", ["true", "false"])
def test_choose_follows_the_recipe(auto, choice):
    choice_made = chosen(auto(f"training.gradient_checkpointing={choice}"), memory=None)
    assert (choice_made.on, choice_made.lines()) == (choice == "true", [])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dpo", []),
        pytest.param("dpo", ["lora.rank=4"], marks=pytest.mark.slow),
        pytest.param("kto", [], marks=pytest.mark.slow),
        pytest.param("orpo", [], marks=pytest.mark.slow),
    ],
    ids=["dpo", "lora", "kto", "orpo"],
)
def test_activation_estimate_is_close_to_the_simulation(make_recipe, recipe_data, name, overrides):
    """Compare with the simulation of trl's own step, which other tests compare with real steps."""
    recipe = make_recipe(recipe_data, *overrides).recipe
    method, _ = recipe.methods[name].for_labels(1, 1)
    simulated = simulate_run_step(
        recipe, method, Architectures(CONFIG), GPU, length=64
    ).passes.total
    reference = 0 if recipe.lora or not method.needs_reference else PARAMETERS
    before = torch.get_rng_state()
    bound = estimate_activation_memory(
        recipe, method, GPU, Policy(CONFIG), length=64, reference=reference
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.9 < bound / simulated < 1.25


def test_choice_is_applied_and_printed_in_a_run(auto, capsys):
    recipe = auto("training.max_steps=1")
    train(recipe, recipe.dpo)
    printed = capsys.readouterr().out
    assert "gradient checkpointing: off, " in printed
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["effective"]["gradient_checkpointing"] is False


@pytest.mark.parametrize("shared_prefix", ["auto", "off"])
def test_choice_of_a_run_is_by_packed_rows_where_they_are_used(auto, capsys, shared_prefix):
    recipe = auto("training.max_steps=1", f"performance.shared_prefix={shared_prefix}")
    trainer, inputs = trainer_of(recipe, "dpo")
    tokens = inputs.packed(recipe, recipe.dpo)
    rows = [
        len(r["prompt_ids"] + r["chosen_ids"] + r["rejected_ids"]) for r in trainer.train_dataset
    ]
    assert sum(sorted(rows)[:4]) <= tokens <= sum(sorted(rows)[-4:])
    needed = estimate_activation_memory(
        recipe,
        recipe.dpo,
        CPU,
        Policy(trainer.model.config),
        length=inputs.longest_row,
        reference=count_parameters(trainer.ref_model)[0],
        packed=tokens if shared_prefix == "auto" else None,
    )
    assert trainer.context.checkpointing.why.startswith(f"{format_bytes(needed)} of ")


def test_dry_run_prints_the_choice(recipe_data, dry_run):
    del recipe_data["training"]["gradient_checkpointing"]
    del recipe_data["data"]["eval"]
    choices = {}
    for memory in ("80GiB", "1MiB"):
        _, document, printed = dry_run(recipe_data, "sft", "--gpu-memory", memory)
        assert f"gradient checkpointing: {'off' if memory == '80GiB' else 'on'}, " in printed
        choices[memory] = document["gradient_checkpointing"]
        assert document["effective"]["gradient_checkpointing"] is choices[memory]
    assert choices == {"80GiB": False, "1MiB": True}
