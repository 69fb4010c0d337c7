"""Real runs pushed into the states that the health rules are for, and healthy ones beside them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefcli.errors import DivergedError
from prefcli.training.run import train
from tests.support.tiny_runs import WORDS, metric_rows, write_jsonl


def kind_or_rude(count: int, seed: int, *, right: float = 1.0, by_length: bool = False) -> list:
    """Kind answers are chosen, in a share `right` of the pairs; or the longer ones, in most."""
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
    """Pairs that a tiny model learns in a minute of steps, in batches of 16."""

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
        return recipe_data

    return make


def said(recipe) -> dict[str, str]:
    """The loudest level of each rule that spoke."""
    path = Path(recipe.output_dir) / "health.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {each["check"]: each["level"] for each in map(json.loads, lines)}


def run(data: dict, make_recipe, name: str = "dpo", *overrides: str):
    recipe = make_recipe(data, *overrides).recipe
    train(recipe, recipe.methods[name])
    return recipe


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo", "simpo", "sft"])
def test_a_healthy_run_is_told_nothing(task, make_recipe, name):
    recipe = run(task(), make_recipe, name)
    assert said(recipe) == {}
    last = metric_rows(recipe.output_dir)[-1]
    assert last["eval_perplexity"] < 300
    assert last.get("eval_rewards/accuracies", 1.0) > 0.8


def test_random_labels(task, make_recipe):
    data = task(kind_or_rude(960, 1, right=0.5), kind_or_rude(480, 2, right=0.5))
    assert said(run(data, make_recipe)) == {"accuracy": "warn"}


def test_labels_of_the_held_out_rows_are_swapped(task, make_recipe, capsys):
    data = task(held_out=kind_or_rude(160, 2, right=0.0))
    assert said(run(data, make_recipe))["accuracy"] == "warn"
    assert "in one of them chosen and rejected are swapped" in capsys.readouterr().out


def test_a_learning_rate_that_is_none(task, make_recipe):
    assert said(run(task(learning_rate=1e-9), make_recipe)) == {"no_learning": "warn"}


def test_a_few_pairs_again_and_again(task, make_recipe):
    data = task(kind_or_rude(16, 1, right=0.5) * 20, learning_rate=5e-3)
    assert said(run(data, make_recipe))["overfitting"] == "warn"


def test_length_alone_tells_them_apart(task, make_recipe):
    biased = kind_or_rude(1600, 1, by_length=True)
    recipe = run(task(biased, max_steps=95, learning_rate=2e-3), make_recipe)
    assert said(recipe)["length"] == "warn"


def test_a_target_gap_that_takes_text_apart(task, make_recipe):
    data = task(learning_rate=1e-2)
    assert said(run(data, make_recipe, "ipo", "ipo.beta=0.05")) == {"margin": "warn"}


@pytest.mark.report
def test_a_collapse_ends_the_run_and_its_report_says_why(task, make_recipe):
    """beta 0.001 and steps a hundred times too large."""
    recipe = make_recipe(task(learning_rate=5e-2), "dpo.beta=0.001").recipe
    with pytest.raises(DivergedError, match=r"health\.collapse: step .* nats a token") as stop:
        train(recipe, recipe.dpo)
    assert stop.value.exit_code == 5
    assert said(recipe)["collapse"] == "stop"
    folder = Path(recipe.output_dir)
    assert not (folder / "model").exists()
    known = json.loads((folder / "run.json").read_text("utf-8"))
    assert known["status"] == "diverged"
    rows = metric_rows(recipe.output_dir)
    lost = [row["step"] for row in rows if row.get("logps/rejected_per_token", 0) < -50]
    assert lost == [rows[-1]["step"]], "it ends with the first row that is lost"
    assert "the distribution has collapsed" in (folder / "report.html").read_text("utf-8")
    # The same command again says so; a rule that is quieter lets the run go on.
    with pytest.raises(DivergedError, match="diverged"):
        train(recipe, recipe.dpo)
    quieter = "health.collapse.level=warn"
    recipe = make_recipe(task(learning_rate=5e-2), "dpo.beta=0.001", quieter).recipe
    train(recipe, recipe.dpo)
    assert (folder / "model").exists()


def test_weights_that_are_no_numbers(task, make_recipe, tiny_model, tmp_path):
    """sft has no gate before it: the evaluation before the first step ends the run."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(task(), f"model.name_or_path={broken}").recipe
    with pytest.raises(DivergedError, match="eval_loss"):
        train(recipe, recipe.sft)
    assert said(recipe) == {"finite": "stop"}
    assert [row["step"] for row in metric_rows(recipe.output_dir)] == [0]
