"""Runs with the packed forward and with trl's: the same metrics and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prefcli.errors import RecipeError
from prefcli.training.run import train
from tests.support.scored_rows import distance, tiny
from tests.support.tiny_runs import interrupt, labelled, metric_rows, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
LINE = "speed: rows are scored without padding, and a shared prompt only once\n"


@pytest.mark.parametrize(
    ("name", "sections", "passes"),
    [
        # The policy and the reference, for kto each once more for its KL term: 16 micro-batches,
        # evaluations of 10 rows in 3 batches before the first step and after steps 4 and 8, and
        # the step-0 check's 8 rows.
        ("dpo", {}, 2 * (16 + 9 + 8)),
        pytest.param("dpo", {"lora": LORA}, 2 * (16 + 9 + 8), marks=pytest.mark.slow),
        pytest.param("kto", {}, 4 * (16 + 9 + 8), marks=pytest.mark.slow),
        ("sft", {}, 16 + 9),
        ("reward", {}, 16 + 9 + 8 + 1),  # the last when model/ is read back
        pytest.param("reward", {"lora": LORA}, 16 + 9 + 8 + 1, marks=pytest.mark.slow),
    ],
    ids=["dpo", "dpo lora", "kto", "sft", "reward", "reward lora"],
)
def test_run_with_the_packed_forward_equals_trl(
    recipe_data, make_recipe, tmp_path, capsys, name, sections, passes
):
    if name == "kto":
        recipe_data["data"]["train"] = {
            "path": str(write_jsonl(tmp_path / "t.jsonl", labelled(24)))
        }
        recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "e.jsonl", labelled(10)))}
    recipe_data["training"] |= {
        "gradient_checkpointing": True,
        "max_steps": 8,
        "eval_steps": 4,
        "save_steps": 4,
    }
    runs = {}
    for choice in ("off", "on"):
        data = {**recipe_data, **sections, "output_dir": str(tmp_path / choice)}
        recipe = make_recipe(data, f"performance.shared_prefix={choice}").recipe
        train(recipe, recipe.methods[name])
        runs[choice] = recipe, metric_rows(recipe.output_dir), weights(recipe)
        assert (LINE in capsys.readouterr().out) == (choice == "on")
    (_, stock, stock_weights), (recipe, fast, fast_weights) = runs["off"], runs["on"]
    assert losses(fast) == pytest.approx(losses(stock), rel=1e-5)
    assert len(losses(fast)) == 8 + 3
    assert distance(stock_weights, fast_weights) <= 1e-4
    record = speed(recipe)
    assert record["shared_prefix"] == "in use"
    assert (record["fast_calls"], record["stock_calls"]) == (passes, 0)
    assert 0 < record["tokens"] < record["tokens_padded"]
    if sections or name != "dpo":
        return
    # After a resume as well.
    interrupt(recipe.output_dir, "checkpoint-8")
    train(recipe, recipe.methods[name])
    assert losses(metric_rows(recipe.output_dir)) == pytest.approx(losses(stock), rel=1e-5)
    assert distance(stock_weights, weights(recipe)) <= 1e-4
    assert speed(recipe)["fast_calls"] == 2 * (8 + 3 + 8)


def losses(rows: list[dict]) -> list[float]:
    return [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]


def weights(recipe) -> dict[str, torch.Tensor]:
    (file,) = (Path(recipe.output_dir) / "model").glob("*.safetensors")
    return load_file(file)


def speed(recipe) -> dict:
    return json.loads((Path(recipe.output_dir) / "run.json").read_text("utf-8"))["speed"]


@pytest.fixture
def unsupported(recipe_data, tiny_model, tmp_path):
    """A recipe for a model of a family that the packed forward does not support."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "stablelm")
    tiny("stablelm", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "stablelm")
    recipe_data["model"] = {"name_or_path": str(tmp_path / "stablelm")}
    recipe_data["training"]["max_steps"] = 1
    return recipe_data


def test_run_that_falls_back_prints_the_reason_once(unsupported, make_recipe, capsys):
    recipe = make_recipe(unsupported).recipe
    train(recipe, recipe.dpo)
    reason = "it is not verified for model type stablelm"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("speed:")]
    assert lines == [f"speed: rows are scored by trl's own forward: {reason}"]
    assert speed(recipe) == {
        "shared_prefix": reason,
        "fast_calls": 0,
        "stock_calls": 0,
        "tokens": 0,
        "tokens_padded": 0,
        "attention_calls": {},
    }


def test_run_with_shared_prefix_on_stops_instead_of_falling_back(
    unsupported, recipe_data, tiny_model, make_recipe
):
    recipe = make_recipe(unsupported, "performance.shared_prefix=on").recipe
    with pytest.raises(RecipeError, match="not verified for model type stablelm") as caught:
        train(recipe, recipe.dpo)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].path == "performance.shared_prefix"
    recipe_data["model"] = {"name_or_path": str(tiny_model), "attn_implementation": "eager"}
    recipe_data["output_dir"] += "-2"
    recipe = make_recipe(recipe_data, "performance.shared_prefix=on").recipe
    with pytest.raises(RecipeError, match="attn_implementation is eager"):
        train(recipe, recipe.dpo)


def test_run_with_sft_packing_falls_back_to_trl(recipe_data, make_recipe, capsys):
    recipe_data["sft"] = {"packing": True}
    recipe_data["training"]["max_steps"] = 1
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.sft)
    assert speed(recipe)["shared_prefix"] == "sft.packing leaves no padding"
    assert "trl's own forward: sft.packing leaves no padding" in capsys.readouterr().out
