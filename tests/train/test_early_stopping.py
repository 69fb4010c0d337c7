"""Early stopping: the last step, the best checkpoint, and both after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefcli.errors import RecipeError
from prefcli.training.run import train
from tests.support.tiny_runs import interrupt, metric_rows, pairs, write_jsonl


@pytest.fixture
def stopping(recipe_data, tmp_path) -> dict:
    """A recipe with swapped eval labels, so that training makes the eval loss worse."""
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(40)[30:]
    ]
    recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "swapped.jsonl", swapped))}
    recipe_data["training"] |= {
        "max_steps": 30,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": None,
        "early_stopping": {"patience": 3},
    }
    return recipe_data


def evaluated(run: str, metric: str = "eval_loss") -> dict[int, float]:
    return {row["step"]: row[metric] for row in metric_rows(run) if metric in row}


def stops_at(losses: dict[int, float], patience: int) -> tuple[int, int]:
    """Return (last step, best step) by the rule."""
    best, since = None, 0
    for step in sorted(losses)[1:]:  # the evaluation before the first step does not count
        if best is None or losses[step] < losses[best]:
            best, since = step, 0
        else:
            since += 1
        if since == patience:
            return step, best
    return max(losses), best


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_early_stopping_ends_after_patience_and_keeps_the_best(stopping, make_recipe):
    recipe = make_recipe(stopping).recipe
    outcome = train(recipe, recipe.dpo)
    losses = evaluated(recipe.output_dir)
    step, best = stops_at(losses, 3)
    assert max(losses) == step < 30
    folder = Path(recipe.output_dir)
    assert same_weights(folder / "model", folder / f"checkpoint-{best}")
    assert not same_weights(folder / "model", folder / f"checkpoint-{step}")
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert run["steps"] == step
    assert run["best_step"] == best
    assert outcome.metrics["eval_loss"] == losses[best] == run["eval"]["last"]["eval_loss"]


def test_early_stopping_count_continues_after_a_resume(stopping, make_recipe):
    recipe = make_recipe(stopping).recipe
    train(recipe, recipe.dpo)
    before = evaluated(recipe.output_dir)
    last = max(before)
    interrupt(recipe.output_dir, f"checkpoint-{last}")
    train(recipe, recipe.dpo)
    assert evaluated(recipe.output_dir) == pytest.approx(before)


def test_early_stopping_on_any_eval_metric_stops_the_run(stopping, make_recipe):
    stopping["training"]["early_stopping"] = {"metric": "eval_reference_kl", "patience": 1}
    stopping["training"]["max_steps"] = 6
    recipe = make_recipe(stopping).recipe
    train(recipe, recipe.dpo)
    distances = evaluated(recipe.output_dir, "eval_reference_kl")
    assert max(distances) == stops_at(distances, 1)[0] < 6


def test_early_stopping_on_a_metric_that_is_not_measured_raises(stopping, make_recipe):
    stopping["training"]["early_stopping"] = {"metric": "eval_reference_kl"}
    stopping["reference"] = {"precompute": True}
    recipe = make_recipe(stopping).recipe
    with pytest.raises(RecipeError, match="does not measure eval_reference_kl"):
        train(recipe, recipe.dpo)
    stopping["training"]["early_stopping"] = {"metric": "eval_rewards/margins"}
    recipe = make_recipe(stopping).recipe
    with pytest.raises(RecipeError, match="TRN061"):
        train(recipe, recipe.sft)
