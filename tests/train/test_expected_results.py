"""anchor at the end of real runs: in the log, in run.json, and in what a script reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefcli.methods import METHODS
from prefcli.training.run import train


def run_json(recipe) -> dict:
    return json.loads((Path(recipe.output_dir) / "run.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_what_an_anchor_takes_is_what_evaluations_measure(recipe_data, make_recipe, name):
    recipe_data["anchor"] = {
        "source": "somewhere",
        "method": name,
        "metrics": {f"eval_{m}": [-1e9, 1e9] for m in ("loss", *METHODS[name].metrics)},
    }
    recipe_data["training"]["max_steps"] = 1
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.methods[name])
    assert outcome.anchor.keys() == recipe.anchor.metrics.keys()
    assert all(found["within"] for found in outcome.anchor.values())
    assert {k: found["value"] for k, found in outcome.anchor.items()} == {
        k: outcome.metrics[k] for k in outcome.anchor
    }


def test_within_out_and_of_another_method(recipe_data, make_recipe, capsys):
    """At a learning rate of 1e-9 nothing moves: the loss stays at ln 2, the margin near 0."""
    recipe_data["training"]["learning_rate"] = 1e-9
    recipe_data["anchor"] = {
        "source": "somewhere",
        "method": "dpo",
        "metrics": {"eval_loss": [0.693, 0.694], "eval_rewards/margins": [1.0, 2.0]},
    }
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    said = capsys.readouterr().out
    assert "anchor: eval_loss 0.693147 within 0.693 to 0.694\n" in said
    assert "is out of the band 1 to 2 (somewhere)\n" in said
    assert outcome.anchor["eval_loss"]["within"] is True
    margins = outcome.anchor["eval_rewards/margins"]
    assert abs(margins.pop("value")) < 1e-3
    assert margins == {"low": 1.0, "high": 2.0, "within": False}
    assert run_json(recipe)["status"] == "finished"
    assert run_json(recipe)["anchor"]["eval_loss"] == outcome.anchor["eval_loss"]

    again = train(recipe, recipe.dpo)
    assert again.already_finished
    assert again.anchor == run_json(recipe)["anchor"]

    other = make_recipe(recipe_data, f"output_dir={recipe.output_dir}-ipo").recipe
    assert train(other, other.ipo).anchor == {}
    assert "anchor: not compared, it is of dpo\n" in capsys.readouterr().out
