"""training.early_stopping as a recipe writes it."""

import pytest
import yaml

from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.recipe.sections import EarlyStopping


@pytest.fixture
def loaded(tmp_path):
    def make(**training):
        data = {
            "output_dir": "run",
            "model": {"name_or_path": "model"},
            "dpo": {},
            "data": {"train": {"path": "t.jsonl"}, "eval": {"path": "e.jsonl"}},
            "training": {"eval_steps": 50, "save_steps": 50, **training},
        }
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return load(str(path), []).recipe

    return make


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_loss", False),
        ("eval_perplexity", False),
        ("eval_reference_kl", False),
        ("eval_kl", False),
        ("eval_nll_loss", False),
        ("eval_logps/rejected_per_token", False),
        ("eval_logps/chosen_per_token", True),
        ("eval_rewards/margins", True),
        ("eval_rewards/margins_chosen_shorter", True),
        ("eval_rewards/accuracies", True),
        ("eval_log_odds_chosen", True),
        ("eval_mean_token_accuracy", True),
    ],
)
def test_greater_is_better_follows_the_metric(metric, greater):
    assert EarlyStopping(metric=metric).greater_is_better is greater


def test_metric_of_no_method_is_an_error(loaded):
    assert loaded(early_stopping={"metric": "eval_rewards/accuracies"})
    with pytest.raises(RecipeError, match="did you mean eval_rewards/margins"):
        loaded(early_stopping={"metric": "eval_rewards/margin"})
    with pytest.raises(RecipeError, match="not measured by an evaluation"):
        loaded(early_stopping={"metric": "eval_mean_token_accuracy"})


def test_eval_steps_unlike_save_steps_is_an_error(loaded):
    with pytest.raises(RecipeError, match=r"eval_steps \(50\) and save_steps \(100\)"):
        loaded(save_steps=100, early_stopping={})
    with pytest.raises(RecipeError, match=r"eval_steps \(not set\) and"):
        loaded(eval_steps=None, early_stopping={})
