"""Expected results at the end of runs: in the log, in run.json and in the outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefcli.methods import METHODS
from prefcli.training.run import train


def run_json(recipe) -> dict:
    return json.loads((Path(recipe.output_dir) / "run.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_expected_accepts_every_eval_metric(recipe_data, make_recipe, name):
    recipe_data["expected"] = {
        "source": "somewhere",
        "method": name,
        "metrics": {f"eval_{m}": [-1e9, 1e9] for m in ("loss", *METHODS[name]().metrics)},
    }
    recipe_data["training"]["max_steps"] = 1
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.methods[name])
    assert outcome.expected.keys() == recipe.expected.metrics.keys()
    assert all(compared["within"] for compared in outcome.expected.values())
    assert {k: compared["value"] for k, compared in outcome.expected.items()} == {
        k: outcome.metrics[k] for k in outcome.expected
    }


def test_expected_is_compared_for_its_method_only(recipe_data, make_recipe, capsys):
    """Train with a learning rate of 1e-9, so that the loss stays at ln 2 and the margin near 0."""
    recipe_data["training"]["learning_rate"] = 1e-9
    recipe_data["expected"] = {
        "source": "somewhere",
        "method": "dpo",
        "metrics": {"eval_loss": [0.693, 0.694], "eval_rewards/margins": [1.0, 2.0]},
    }
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    output = capsys.readouterr().out
    assert "expected: eval_loss 0.693147 within 0.693 to 0.694\n" in output
    assert "is outside 1 to 2 (somewhere)\n" in output
    assert outcome.expected["eval_loss"]["within"] is True
    margins = outcome.expected["eval_rewards/margins"]
    assert abs(margins.pop("value")) < 1e-3
    assert margins == {"low": 1.0, "high": 2.0, "within": False}
    assert run_json(recipe)["status"] == "finished"
    assert run_json(recipe)["expected"]["eval_loss"] == outcome.expected["eval_loss"]

    again = train(recipe, recipe.dpo)
    assert again.already_finished
    assert again.expected == run_json(recipe)["expected"]

    other = make_recipe(recipe_data, f"output_dir={recipe.output_dir}-ipo").recipe
    assert train(other, other.ipo).expected == {}
    assert "expected: not compared, since the metrics are for dpo\n" in capsys.readouterr().out
