"""Each combination is reported for a recipe that has it, and for no other."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.compatibility import COMBINATIONS, STRATEGIES, Case, check_combinations
from prefcli.recipe.schema import Recipe

LORA = {"rank": 8}

# Of each row of the table, in its order: what its recipe is made of, and how it is spread.
FIRES = [
    ("model.quantization", {"model.quantization": "4bit", "lora": LORA}, "fsdp2"),
    ("training.gradient_checkpointing", {"lora": LORA}, "zero3"),
    ("training.optim", {"training.optim": "paged_adamw_8bit"}, "fsdp2"),
    (
        "model.attn_implementation",
        {"model.attn_implementation": "flash_attention_2", "model.dtype": "float32"},
        "single",
    ),
    ("lora.modules_to_save", {"lora": LORA | {"modules_to_save": ["lm_head"]}}, "fsdp2"),
    ("launch.strategy", {}, "fsdp1"),
    (
        "lora.target_parameters",
        {"lora": LORA | {"target_parameters": "experts", "dropout": 0.0}},
        "fsdp2",
    ),
    ("model.dtype", {"model.dtype": "float16"}, "single"),
    ("reference.precompute", {"reference.precompute": True, "lora": LORA}, "single"),
    ("lora", {"lora": LORA}, "fsdp1"),
]


def recipe(changes: dict | None = None) -> Recipe:
    data: dict = {
        "output_dir": "runs/x",
        "model": {"name_or_path": "m"},
        "data": {"train": {"path": "a.jsonl"}},
        **{name: {} for name in METHODS},
        "judge": {"function": {"name": "judge.py:score"}},
    }
    for path, value in (changes or {}).items():
        section, _, key = path.partition(".")
        if key:
            data.setdefault(section, {})[key] = value
        else:
            data[section] = value
    return Recipe.model_validate(data)


def fired(recipe: Recipe, strategy: str, method: str = "dpo") -> list[int]:
    case = Case(recipe, recipe.methods[method], strategy)
    return [number for number, combination in enumerate(COMBINATIONS) if combination.when(case)]


def test_every_combination_has_a_test():
    assert len(COMBINATIONS) == len(FIRES) == 10
    assert [combination.path for combination in COMBINATIONS] == [path for path, _, _ in FIRES]
    assert [combination.level for combination in COMBINATIONS] == ["error"] * 6 + ["warning"] * 4
    assert all(combination.source and combination.instead for combination in COMBINATIONS)


@pytest.mark.parametrize("number", range(len(FIRES)), ids=[path for path, _, _ in FIRES])
def test_combination_is_reported_alone(number):
    path, changes, strategy = FIRES[number]
    bad = recipe(changes)
    method = {"zero3": "simpo"}.get(strategy, "dpo")
    if path == "launch.strategy":
        method = "rloo"
    assert fired(bad, strategy, method) == [number]
    method = bad.methods[method]
    row = COMBINATIONS[number]
    if row.level == "error":
        with pytest.raises(RecipeError) as caught:
            check_combinations(bad, method, strategy)
        (problem,) = caught.value.problems
        assert (problem.path, problem.message, problem.hint) == (path, row.what, row.instead)
    else:
        (line,) = check_combinations(bad, method, strategy)
        assert line == f"{path}: {row.what}; {row.instead} ({row.source})"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.needs_judge])
def test_plain_recipe_has_no_combination(method, strategy):
    assert fired(recipe(), strategy, method) == []


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({"model.quantization": "4bit", "lora": LORA}, "ddp"),
        ({"model.quantization": "8bit", "lora": LORA}, "zero2"),
        ({"lora": LORA}, "fsdp2"),
        ({"lora": LORA}, "zero3"),  # trl's DPO knows what to do
        ({"training.optim": "adamw_8bit"}, "zero2"),
        ({"training.optim": "adamw_torch_fused"}, "fsdp2"),
        ({"model.attn_implementation": "flash_attention_2"}, "single"),
        ({"model.dtype": "float32", "model.attn_implementation": "sdpa"}, "single"),
        ({"reference.precompute": True}, "single"),
        (
            {"reference.precompute": True, "reference.name_or_path": "other", "lora": LORA},
            "single",
        ),
        ({}, "fsdp1"),
    ],
)
def test_similar_valid_settings_have_no_combination(changes, strategy):
    assert fired(recipe(changes), strategy) == []


@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_zero3_adapter_without_checkpointing_is_valid(method):
    plain = recipe({"lora": LORA, "training.gradient_checkpointing": False})
    assert fired(plain, "zero3", method) == []


def test_float16_for_sft_has_no_warning():
    assert fired(recipe({"model.dtype": "float16"}), "single", "sft") == []


def test_check_combinations_reports_all_errors():
    bad = recipe({"lora": LORA, "model.quantization": "4bit", "training.optim": "adamw_8bit"})
    with pytest.raises(RecipeError) as caught:
        check_combinations(bad, bad.orpo, "zero3")
    assert [problem.path for problem in caught.value.problems] == [
        "model.quantization",
        "training.gradient_checkpointing",
        "training.optim",
    ]
