"""Defaults that depend on the method: filled in once, saved, and compared on resume."""

from __future__ import annotations

import pytest
import yaml

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.defaults import default_learning_rate, resolve_defaults
from tests.support.broken_recipes import GOOD, write


def resolved(folder, *overrides, method="dpo"):
    recipe = load(write(folder, GOOD), [f"{method}={{}}", *overrides]).recipe
    return resolve_defaults(recipe, recipe.methods[method])


@pytest.fixture
def run(tmp_path):
    """A preempted run, and a function that edits its saved recipe."""
    folder = RunDir(str(tmp_path / "run"))
    folder.start(resolved(tmp_path), "dpo")
    folder.write_run({"status": "preempted", "method": "dpo", "effective": {"learning_rate": 5e-7}})
    folder.model.mkdir()

    def edit(change):
        saved = yaml.safe_load(folder.recipe.read_text())
        change(saved)
        folder.recipe.write_text(yaml.safe_dump(saved))
        return folder

    return edit


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lora", ["null", "{}"])
def test_resolve_defaults_fills_in_the_rate_of_method_and_lora(name, lora, tmp_path):
    judge = "judge={function: {name: judge.py:score}}"
    recipe = resolved(tmp_path, f"lora={lora}", judge, method=name)
    rates = METHODS[name].learning_rates
    assert recipe.training.learning_rate == (rates.full if lora == "null" else rates.lora)


@pytest.mark.parametrize(
    ("override", "ratio"),
    [
        ("training.save_steps=500", 0.1),
        ("training.warmup_ratio=0.03", 0.03),
        ("training.warmup_steps=7", None),
        ("training.lr_scheduler_type=constant", 0.0),
    ],
)
def test_resolve_defaults_keeps_the_warmup_of_the_run(override, ratio, tmp_path):
    recipe = resolved(tmp_path, override)
    unresolved = load(write(tmp_path, GOOD), [override]).recipe
    assert recipe.training.warmup_ratio == ratio
    assert recipe.training.warmup == unresolved.training.warmup


def test_resolve_defaults_keeps_what_is_written(tmp_path):
    assert resolved(tmp_path, "training.learning_rate=3e-6").training.learning_rate == 3e-6
    recipe = resolved(tmp_path)
    assert resolve_defaults(recipe, recipe.dpo) is recipe


def test_saved_recipe_has_resolved_values_and_can_be_loaded(run, tmp_path):
    folder = run(lambda saved: None)
    recipe = load(str(folder.recipe)).recipe
    assert recipe == resolved(tmp_path)
    assert recipe.training.learning_rate == default_learning_rate(recipe, recipe.dpo)


def test_run_with_another_default_is_a_different_run(run, tmp_path):
    folder = run(lambda saved: saved["training"].update(learning_rate=1e-6))
    with pytest.raises(RecipeError) as caught:
        folder.check(resolved(tmp_path), "dpo")
    assert "training.learning_rate was 1e-06" in str(caught.value)


def test_run_of_an_earlier_version_with_open_defaults_can_be_resumed(run, tmp_path):
    folder = run(lambda saved: saved["training"].update(learning_rate=None, warmup_ratio=None))
    assert folder.check(resolved(tmp_path), "dpo") == "preempted"
    with pytest.raises(RecipeError) as caught:
        folder.check(resolved(tmp_path, "training.learning_rate=1e-6"), "dpo")
    assert "training.learning_rate was 5e-07" in str(caught.value)


def test_run_with_renamed_keys_is_one_error_that_names_the_new_ones(run, tmp_path):
    def rename(saved):
        saved["push"] = {"repo_id": "me/tiny"}
        saved["health"]["collapse"]["on"] = saved["health"]["collapse"].pop("level")

    folder = run(rename)
    with pytest.raises(RecipeError) as caught:
        folder.check(resolved(tmp_path), "dpo")
    (problem,) = caught.value.problems
    assert (problem.code, problem.place) == ("RCP002", str(folder.recipe))
    assert "push is now push_to_hub" in problem.message
    assert "health.collapse.on is now health.collapse.level" in problem.message
