"""Outside the published bands is a warning, ten times outside an error, and small models are free."""
# ruff: noqa: E501 - the tables have a case a line

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.published_ranges import check_published_ranges
from prefcli.recipe.schema import Recipe


def recipe(lora: bool = False, training: dict | None = None, **sections) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": "runs/x",
            "model": {"name_or_path": "m"},
            "data": {"train": {"path": "a.jsonl"}},
            "training": training or {},
            **({"lora": {}} if lora else {}),
            **{name: {} for name in METHODS},
            "judge": {"function": {"name": "judge.py:score"}},
            **sections,
        }
    )


def warnings_of(recipe: Recipe, name: str, parameters: float = 7e9, **options) -> list[str]:
    return check_published_ranges(recipe, recipe.methods[name], int(parameters), **options)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_in_the_published_ranges(name, lora):
    rates = METHODS[name].learning_rates
    rate = rates.lora if lora else rates.full
    assert warnings_of(recipe(lora, {"learning_rate": rate}), name) == []
    assert warnings_of(recipe(lora), name) == []


@pytest.mark.parametrize(
    ("name", "lora", "changes", "path", "text"),
    [
        ("dpo", False, {"training": {"learning_rate": 5e-6}}, "training.learning_rate", "2e-07 to 1e-06 (alignment-handbook"),
        ("dpo", True, {"training": {"learning_rate": 5e-5}}, "training.learning_rate", "1e-06 to 1e-05"),
        ("dpo", False, {"dpo": {"beta": 2.0}}, "dpo.beta", "0.01 to 0.6"),
        ("dpo", False, {"dpo": {"beta": 0.002}}, "dpo.beta", "0.01 to 0.6"),
        ("dpo", False, {"training": {"global_batch_size": 8}}, "training.global_batch_size", "16 to 128"),
        ("kto", False, {"training": {"learning_rate": 1e-5}}, "training.learning_rate", "5e-07 to 5e-06"),
        ("orpo", False, {"orpo": {"lambda": 1.0}}, "orpo.lambda", "0.05 to 0.2"),
        ("simpo", False, {"simpo": {"beta": 1.0, "gamma": 0.5}}, "simpo.beta", "2 to 10"),
        ("simpo", False, {"simpo": {"beta": 2.0, "gamma": 2.0}}, "simpo.gamma", "0.2 to 1.6"),
        ("ipo", False, {"ipo": {"beta": 5.0}}, "ipo.beta", "0.01 to 1"),
        ("sft", False, {"training": {"learning_rate": 1e-4}}, "training.learning_rate", "1e-05 to 5e-05"),
    ],
)  # fmt: skip
def test_value_outside_is_a_warning_with_range_and_source(name, lora, changes, path, text):
    (line,) = warnings_of(recipe(lora, **changes), name)
    assert line.startswith(f"{path} ")
    assert text in line
    assert f"the published range for {name}" in line


def test_value_ten_times_outside_is_an_error_unless_allowed():
    far = recipe(training={"learning_rate": 1e-4, "global_batch_size": 8}, dpo={"beta": 50.0})
    with pytest.raises(RecipeError) as caught:
        warnings_of(far, "dpo")
    assert [p.path for p in caught.value.problems] == ["training.learning_rate", "dpo.beta"]
    assert "100 times above" in str(caught.value)
    assert "--allow-unusual" in str(caught.value)
    assert len(warnings_of(far, "dpo", allowed=True)) == 3


def test_value_exactly_ten_times_outside_is_a_warning():
    assert len(warnings_of(recipe(training={"learning_rate": 1e-5}), "dpo")) == 1
    with pytest.raises(RecipeError):
        warnings_of(recipe(training={"learning_rate": 1.01e-5}), "dpo")


def test_tiny_model_is_not_checked():
    far = recipe(training={"learning_rate": 0.1}, dpo={"beta": 50.0})
    assert warnings_of(far, "dpo", parameters=260_032) == []


def test_small_model_has_larger_sft_rates():
    assert warnings_of(recipe(training={"learning_rate": 1e-3}), "sft", parameters=3.6e8) == []
    assert warnings_of(recipe(training={"learning_rate": 3e-4}), "sft", parameters=1.7e9) == []
    (line,) = warnings_of(recipe(training={"learning_rate": 3e-4}), "sft", parameters=3e9)
    assert "1e-05 to 5e-05" in line
    with pytest.raises(RecipeError):
        warnings_of(recipe(training={"learning_rate": 1e-3}), "sft", parameters=7e9)


def test_loss_with_another_beta_has_its_own_range():
    assert warnings_of(recipe(dpo={"loss_type": "sppo_hard", "beta": 0.001}), "dpo") == []
    assert warnings_of(recipe(dpo={"loss_type": "sigmoid_norm", "beta": 10.0}), "dpo") == []


def test_zero_is_far_below_the_range():
    with pytest.raises(RecipeError, match="0 is far below"):
        warnings_of(recipe(simpo={"gamma": 0.0}), "simpo")
