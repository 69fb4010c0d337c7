"""Real runs in the states that the health rules are for, and healthy ones."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from prefcli.errors import DivergedError
from prefcli.training.run import train
from tests.support.tiny_runs import WORDS, metric_rows, write_jsonl


def kind_or_rude(count: int, seed: int, *, right: float = 1.0, by_length: bool = False) -> list:
    """Pairs in which kind answers are chosen, or the longer ones in most.

    right: share of the pairs with the right label.
    """
    draw = random.Random(seed)

    def say(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length))

    rows = []
    for _ in range(count):
        lengths = (9, 3) if draw.random() < (0.85 if by_length else 0.5) else (3, 9)
        signs = ("", "") if by_length else (" thanks please", " no rude")
        sides = [f"{sign} {say(n)}" for sign, n in zip(signs, lengths, strict=True)]
        if draw.random() >= right:
            sides.reverse()
        rows.append({"prompt": f"say {say(4)}", "chosen": sides[0], "rejected": sides[1]})
    return rows


@pytest.fixture
def task(recipe_data, tmp_path):
    """A function that makes recipes with pairs that a tiny model learns in 60 steps."""

    def make(train=None, held_out=None, **training) -> dict:
        train = kind_or_rude(480, 1) if train is None else train
        held_out = kind_or_rude(160, 2) if held_out is None else held_out
        recipe_data["data"]["train"] = {"path": str(write_jsonl(tmp_path / "t.jsonl", train))}
        recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "e.jsonl", held_out))}
        recipe_data["training"] |= {
            "global_batch_size": 16,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "max_steps": 60,
            "eval_steps": 20,
            "logging_steps": 5,
            "learning_rate": 5e-4,
            **training,
        }
        # From random weights, so short a run does not learn to end its answers.
        recipe_data["health"] = {"end_token": "off"}
        return recipe_data

    return make


def reported_by(recipe) -> dict[str, str]:
    """The last level of each rule that reported."""
    path = Path(recipe.output_dir) / "health.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {entry["rule"]: entry["level"] for entry in map(json.loads, lines)}


def run(data: dict, make_recipe, name: str = "dpo", *overrides: str):
    recipe = make_recipe(data, *overrides).recipe
    train(recipe, recipe.methods[name])
    return recipe


LENGTH_NORMALIZED = {"cpo": ("cpo.loss_type=alphapo",)}
"""The task's responses differ in length by three to one, which decides a comparison of sums of
log-probabilities without a reference; AlphaPO compares means."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "kto", "cpo", "sft")],
)
def test_healthy_run_gets_no_advice(task, make_recipe, name):
    recipe = run(task(), make_recipe, name, *LENGTH_NORMALIZED.get(name, ()))
    assert reported_by(recipe) == {}
    last = metric_rows(recipe.output_dir)[-1]
    assert last["eval_perplexity"] < 300
    assert last.get("eval_rewards/accuracies", 1.0) > 0.8


@pytest.mark.slow
def test_run_on_random_labels_warns_of_accuracy(task, make_recipe):
    data = task(kind_or_rude(960, 1, right=0.5), kind_or_rude(480, 2, right=0.5))
    assert reported_by(run(data, make_recipe)) == {"accuracy": "warn"}


@pytest.mark.slow
def test_run_with_swapped_eval_labels_warns_of_accuracy(task, make_recipe, capsys):
    data = task(held_out=kind_or_rude(160, 2, right=0.0))
    assert reported_by(run(data, make_recipe))["accuracy"] == "warn"
    assert "rejected swapped" in capsys.readouterr().out


@pytest.mark.slow
def test_run_with_a_tiny_learning_rate_warns_of_no_learning(task, make_recipe):
    assert reported_by(run(task(learning_rate=1e-9), make_recipe)) == {"no_learning": "warn"}


@pytest.mark.slow
def test_run_on_repeated_pairs_warns_of_overfitting(task, make_recipe):
    data = task(kind_or_rude(16, 1, right=0.5) * 20, learning_rate=5e-3)
    assert reported_by(run(data, make_recipe))["overfitting"] == "warn"


@pytest.mark.slow
def test_run_on_pairs_that_differ_in_length_warns_of_length(task, make_recipe):
    biased = kind_or_rude(1600, 1, by_length=True)
    recipe = run(task(biased, max_steps=95, learning_rate=2e-3), make_recipe)
    assert reported_by(recipe)["length"] == "warn"


@pytest.mark.slow
def test_run_of_ipo_with_a_large_target_warns_of_margin(task, make_recipe):
    data = task(learning_rate=1e-2)
    assert reported_by(run(data, make_recipe, "ipo", "ipo.beta=0.05")) == {"margin": "warn"}


@pytest.mark.slow
def test_adapter_that_does_not_learn_the_stop_token_warns_and_all_weights_do(
    task, make_recipe, tiny_model, tmp_path
):
    """The base has never seen its stop token: the weights of that token are far from all states."""
    unseen = tmp_path / "unseen"
    shutil.copytree(tiny_model, unseen)
    weights = load_file(unseen / "model.safetensors")
    weights["lm_head.weight"][1] = 0.0
    save_file(weights, unseen / "model.safetensors", metadata={"format": "pt"})
    data = task(max_steps=40) | {"samples": {"prompts": 2, "max_new_tokens": 4}}
    data["data"]["eval"]["rows"] = 32
    base = (f"model.name_or_path={unseen}", "health.end_token=warn", "training.learning_rate=5e-3")
    adapter = run(data, make_recipe, "sft", *base, "lora.rank=2")
    assert reported_by(adapter) == {"end_token": "warn"}
    last = metric_rows(adapter.output_dir)[-1]
    assert last["eval_end_probability"] < 0.05
    assert last["eval_samples_ended"] == 0
    full = run(data, make_recipe, "sft", *base, f"output_dir={tmp_path}/full")
    assert reported_by(full) == {}
    learned = metric_rows(full.output_dir)[-1]["eval_end_probability"]
    assert learned > max(0.05, 2 * last["eval_end_probability"])


@pytest.mark.report
@pytest.mark.slow
def test_collapse_ends_the_run_and_is_in_its_report(task, make_recipe):
    """beta 0.001 and steps a hundred times too large."""
    recipe = make_recipe(task(learning_rate=5e-2), "dpo.beta=0.001").recipe
    with pytest.raises(DivergedError, match=r"health\.collapse: step .* nats per token") as stop:
        train(recipe, recipe.dpo)
    assert stop.value.exit_code == 5
    assert reported_by(recipe)["collapse"] == "stop"
    folder = Path(recipe.output_dir)
    assert not (folder / "model").exists()
    known = json.loads((folder / "run.json").read_text("utf-8"))
    assert known["status"] == "diverged"
    rows = metric_rows(recipe.output_dir)
    below = [row["step"] for row in rows if row.get("logps/rejected_per_token", 0) < -50]
    assert below == [rows[-1]["step"]], "it ends with the first such row"
    assert "the distribution has collapsed" in (folder / "report.html").read_text("utf-8")
    # The same command fails again; with a lower level the run continues.
    with pytest.raises(DivergedError, match="diverged"):
        train(recipe, recipe.dpo)
    milder = "health.collapse.level=warn"
    recipe = make_recipe(task(learning_rate=5e-2), "dpo.beta=0.001", milder).recipe
    train(recipe, recipe.dpo)
    assert (folder / "model").exists()


def test_run_on_weights_that_overflow_stops_at_step_0(task, make_recipe, tiny_model, tmp_path):
    """sft has no check-sft, so the evaluation before the first step ends the run."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(task(), f"model.name_or_path={broken}").recipe
    with pytest.raises(DivergedError, match="eval_loss"):
        train(recipe, recipe.sft)
    assert reported_by(recipe) == {"finite": "stop"}
    assert [row["step"] for row in metric_rows(recipe.output_dir)] == [0]
