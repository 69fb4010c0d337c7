"""Whole runs by the fast forward and by trl's: the same figures, weights, and words about it."""

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
SAID = "speed: rows are scored without padding, and a shared prompt only once\n"


@pytest.mark.parametrize(
    ("name", "more", "passes"),
    [
        # The policy and the reference, for kto each once more for its KL term: 16 micro-batches,
        # evaluations of 10 rows in 3 batches before the first step and after steps 4 and 8, and
        # the step-0 check's 8 rows.
        ("dpo", {}, 2 * (16 + 9 + 8)),
        ("dpo", {"lora": LORA}, 2 * (16 + 9 + 8)),
        ("kto", {}, 4 * (16 + 9 + 8)),
        ("sft", {}, 16 + 9),
    ],
    ids=["dpo", "dpo lora", "kto", "sft"],
)
def test_a_run_is_the_same(recipe_data, make_recipe, tmp_path, capsys, name, more, passes):
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
    found = {}
    for choice in ("off", "on"):
        data = {**recipe_data, **more, "output_dir": str(tmp_path / choice)}
        recipe = make_recipe(data, f"performance.shared_prefix={choice}").recipe
        train(recipe, recipe.methods[name])
        found[choice] = recipe, metric_rows(recipe.output_dir), weights(recipe)
        assert (SAID in capsys.readouterr().out) == (choice == "on")
    (_, stock, theirs), (recipe, fast, ours) = found["off"], found["on"]
    assert losses(fast) == pytest.approx(losses(stock), rel=1e-5)
    assert len(losses(fast)) == 8 + 3
    assert distance(theirs, ours) <= 1e-4
    told = speed(recipe)
    assert told["shared_prefix"] == "in use"
    assert (told["fast_calls"], told["stock_calls"]) == (passes, 0)
    assert 0 < told["tokens"] < told["tokens_padded"]
    if more or name != "dpo":
        return
    # And from the middle on.
    interrupt(recipe.output_dir, "checkpoint-8")
    train(recipe, recipe.methods[name])
    assert losses(metric_rows(recipe.output_dir)) == pytest.approx(losses(stock), rel=1e-5)
    assert distance(theirs, weights(recipe)) <= 1e-4
    assert speed(recipe)["fast_calls"] == 2 * (8 + 3 + 8)


def losses(rows: list[dict]) -> list[float]:
    return [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]


def weights(recipe) -> dict[str, torch.Tensor]:
    (file,) = (Path(recipe.output_dir) / "model").glob("*.safetensors")
    return load_file(file)


def speed(recipe) -> dict:
    return json.loads((Path(recipe.output_dir) / "run.json").read_text("utf-8"))["speed"]


@pytest.fixture
def foreign(recipe_data, tiny_model, tmp_path):
    """A recipe for a model of a family that the fast forward knows nothing of."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "foreign")
    tiny("stablelm", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "foreign")
    recipe_data["model"] = {"name_or_path": str(tmp_path / "foreign")}
    recipe_data["training"]["max_steps"] = 1
    return recipe_data


def test_a_run_that_falls_back_says_why_once(foreign, make_recipe, capsys):
    recipe = make_recipe(foreign).recipe
    train(recipe, recipe.dpo)
    reason = "stablelm is not among the architectures it is known to be exact for"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("speed:")]
    assert said == [f"speed: rows are scored by trl's own forward: {reason}"]
    assert speed(recipe) == {
        "shared_prefix": reason,
        "fast_calls": 0,
        "stock_calls": 0,
        "tokens": 0,
        "tokens_padded": 0,
        "attention_calls": {},
    }


def test_a_run_that_insists_on_it_stops(foreign, recipe_data, tiny_model, make_recipe):
    recipe = make_recipe(foreign, "performance.shared_prefix=on").recipe
    with pytest.raises(RecipeError, match="stablelm is not among") as caught:
        train(recipe, recipe.dpo)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].path == "performance.shared_prefix"
    recipe_data["model"] = {"name_or_path": str(tiny_model), "attn_implementation": "eager"}
    recipe_data["output_dir"] += "-2"
    recipe = make_recipe(recipe_data, "performance.shared_prefix=on").recipe
    with pytest.raises(RecipeError, match="attn_implementation is eager"):
        train(recipe, recipe.dpo)


def test_packed_rows_are_trls(recipe_data, make_recipe, capsys):
    recipe_data["sft"] = {"packing": True}
    recipe_data["training"]["max_steps"] = 1
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.sft)
    assert speed(recipe)["shared_prefix"] == "sft.packing leaves no padding"
    assert "trl's own forward: sft.packing leaves no padding" in capsys.readouterr().out
