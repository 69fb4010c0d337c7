"""Reward models: trained, saved, scored with, and what cannot become one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prefcli.errors import RecipeError
from prefcli.evaluation.evaluate import evaluate
from prefcli.evaluation.merge import merge
from prefcli.evaluation.scored_models import scoring_rewards
from prefcli.methods import Reward
from prefcli.model import load_tokenizer
from prefcli.model.reward_model import load_reward_model, rewards
from prefcli.recipe.defaults import resolve_defaults
from prefcli.recipe.sections import Model, RewardModel
from prefcli.report.run_data import read_run
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import pairs, write_jsonl

LORA = {"rank": 4, "dropout": 0.0}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_reward_run_starts_at_ln_2_and_its_model_gives_the_evaluated_rewards(
    recipe_data, make_recipe, tmp_path, capsys, lora
):
    recipe_data |= {"lora": lora, "samples": {}}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, Reward())
    output = capsys.readouterr().out
    assert "step 0: a new reward head, loss 0.6931 matches its formula (ln 2)" in output
    assert "LOAD REPORT" not in output
    assert "reads back" in output
    assert "prefcli score" in output
    run = read_run(recipe.output_dir)
    first, last = run.evals[0], run.evals[-1]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert not [name for name in last if name.startswith("logps/") or name == "accuracy"]
    options = Model(name_or_path=f"{recipe.output_dir}/model")
    model = load_reward_model(options, torch.float32, "model", pad_token_id=2)
    tokenizer = load_tokenizer(recipe.model)
    rows = [
        [tokenizer(r["prompt"] + r[s] + "</s>")["input_ids"] for r in pairs(40)[30:]]
        for s in ("chosen", "rejected")
    ]
    chosen, rejected = (rewards(model, side) for side in rows)
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    if lora:
        result = merge(recipe.output_dir, tmp_path / "merged", torch.float32)
        assert result.error < 1e-5 < result.effect
        merged = load_reward_model(
            Model(name_or_path=str(tmp_path / "merged")), torch.float32, "model"
        )
        assert rewards(merged, rows[0]) == pytest.approx(chosen, abs=1e-5)
    assert sum(margins) / len(margins) == pytest.approx(last["rewards/margins"], abs=1e-5)
    assert sum(m > 0 for m in margins) / len(margins) == last["rewards/accuracies"]
    measured = evaluate(recipe, Reward(), [recipe.output_dir]).total.models[0]
    assert measured["rewards/margins"].value == pytest.approx(last["rewards/margins"], abs=1e-5)
    assert set(measured) == {name for name in last if name in measured}
    assert sum(chosen) / len(chosen) == pytest.approx(last["rewards/chosen"], abs=1e-5)


def test_reward_run_continues_a_reward_model(recipe_data, make_recipe, tmp_path, capsys):
    torch.manual_seed(0)
    source = recipe_data["model"]["name_or_path"]
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.config.pad_token_id = None  # as in Llama and Mistral; the packed forward needs it
    model.save_pretrained(tmp_path / "rm")
    load_tokenizer(Model(name_or_path=source)).save_pretrained(tmp_path / "rm")
    recipe_data["model"]["name_or_path"] = str(tmp_path / "rm")
    options = ["performance.shared_prefix=on", "training.gradient_checkpointing=auto"]
    train(make_recipe(recipe_data, *options).recipe, Reward())
    output = capsys.readouterr().out
    assert "step 0: the reward head is right about" in output
    # A saved reward model without its head is damaged, not a language model.
    weights = dict(model.state_dict())
    del weights["score.weight"]
    model.save_pretrained(tmp_path / "rm", state_dict=weights)
    recipe_data["output_dir"] = str(tmp_path / "other")
    with stops_with("MDL026"):
        train(make_recipe(recipe_data).recipe, Reward())


def test_rows_longer_than_max_length_are_dropped_and_counted(recipe_data, make_recipe, capsys):
    recipe_data["data"]["max_length"] = 18
    recipe = make_recipe(recipe_data).recipe
    train(recipe, Reward())
    dropped = read_run(recipe.output_dir).record["data"]["train"]["dropped"]
    assert dropped == {"longer than max_length, and a reward model needs the end": 4}


def test_margins_of_the_data_are_in_the_first_loss(recipe_data, make_recipe, tmp_path, capsys):
    rows = [{**row, "by": 1 + i % 2} for i, row in enumerate(pairs(24))]
    recipe_data["data"] |= {"train": {"path": str(write_jsonl(tmp_path / "m.jsonl", rows))}}
    recipe_data["data"]["eval"] = None
    recipe_data["reward"] = {"margin_column": "by"}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods["reward"])
    output = capsys.readouterr().out
    assert "loss 1.3133 matches its formula (its margin)" in output
    assert "unread" not in output
    rows[3]["by"] = "much"
    write_jsonl(tmp_path / "m.jsonl", rows)
    recipe_data["output_dir"] = str(tmp_path / "other")
    with stops_with("DAT010") as caught:
        train(make_recipe(recipe_data).recipe, recipe.methods["reward"])
    assert "row 4" in str(caught.value)


def test_models_without_a_reward_head_are_refused(tiny_model, tmp_path):
    with pytest.raises(RecipeError, match="MDL040"):
        load_reward_model(Model(name_or_path=str(tiny_model)), torch.float32, "model")
    two = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(RecipeError, match="MDL040"):
        load_reward_model(Model(name_or_path=str(tmp_path / "two")), torch.float32, "model")


def test_reward_model_with_a_shorter_context_than_max_length_raises(
    recipe_data, make_recipe, tiny_model
):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.config.max_position_embeddings = 8
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="MDL023"), scoring_rewards(model, recipe, "rm"):
        pass


def test_method_decides_what_head_the_model_gets(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data).recipe
    resolved = resolve_defaults(recipe, Reward())
    assert isinstance(resolved.model, RewardModel)
    assert resolved.model_dump() == resolve_defaults(recipe, recipe.methods["dpo"]).model_dump() | {
        "training": resolved.training.model_dump()
    }
