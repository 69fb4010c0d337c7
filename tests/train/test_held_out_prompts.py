"""Evaluation rows that are drawn from data.train, by prompt."""

from __future__ import annotations

import pytest

from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import RecipeError
from prefcli.model import load_tokenizer
from tests.support.tiny_runs import write_jsonl


def rows(count):
    """Two rows for each prompt, and a row with a bad label."""
    answers = [{"completion": " good", "label": True}, {"completion": " bad", "label": False}]
    return [{"prompt": f"q{i}", **answer} for i in range(count) for answer in answers]


@pytest.fixture
def load(recipe_data, make_recipe, tmp_path):
    """Load the rows of a recipe for kto with a held-out share."""

    def load(share, count=100, **changes):
        path = write_jsonl(tmp_path / "rows.jsonl", rows(count))
        recipe_data["data"] |= {"train": {"path": str(path)}, "eval": {"from_train": share}}
        recipe = make_recipe(recipe_data | changes).recipe
        return load_run_datasets(recipe, recipe.kto, load_tokenizer(recipe.model))

    return load


def test_held_out_prompts_are_evaluated_and_not_trained_on(load):
    datasets = load(0.3)
    train, held_out = ({*split.rows["prompt"]} for split in (datasets.train, datasets.eval))
    assert train.isdisjoint(held_out)
    assert train | held_out == {f"q{i}" for i in range(100)}
    assert 15 <= len(held_out) <= 45
    assert datasets.eval.read == len(datasets.eval.rows) == 2 * len(held_out)
    assert datasets.train.read + datasets.eval.read == 200
    assert any("without 30 % of the prompts" in line for line in datasets.train.lines())


def test_held_out_prompts_follow_the_seed(load):
    first = {*load(0.3).eval.rows["prompt"]}
    assert {*load(0.3).eval.rows["prompt"]} == first
    assert {*load(0.3, seed=7).eval.rows["prompt"]} != first


def test_share_without_a_prompt_is_an_error(load):
    with pytest.raises(RecipeError) as error:
        load(1e-6, count=5)
    assert error.value.problems[0].path == "data.eval.from_train"
