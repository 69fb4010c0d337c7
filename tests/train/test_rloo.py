"""RLOO: sampled and judged during training, stopped by its judge, resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefcli.errors import RecipeError
from prefcli.memory.advice import Candidate, advise
from prefcli.memory.fake_models import Architectures
from prefcli.memory.hardware import Hardware
from prefcli.memory.prediction import Memory
from prefcli.methods import METHODS
from prefcli.model import Device, load_base_config, load_tokenizer
from prefcli.recipe.sections import Model
from prefcli.report.run_data import read_run
from prefcli.training.dry_run import dry_run
from prefcli.training.judge import judge_parameters
from prefcli.training.mixins.metric_sums import equal_share
from prefcli.training.prompt_sampler import PromptSampler
from prefcli.training.run import train
from prefcli.training.simulation import simulate_run_step
from tests.support.judge import RLOO
from tests.support.problems import stops_with
from tests.support.scored_rows import tiny
from tests.support.tiny_runs import metric_rows, pairs, trainer_of, write_jsonl

GPU = Device("cuda", "a GPU", bfloat16=True)
LORA = {"rank": 4, "dropout": 0.1}
JUDGE = """
import os
calls = 0
def score(prompts, completions):
    global calls
    calls += 1
    if calls == int(os.environ.get("FAIL_AT", "0")):
        raise ValueError("no quota left")
    return [None if "z" in text else text.count("e") for text in completions]
"""


@pytest.fixture
def rloo_recipe(recipe_data, make_recipe, tmp_path):
    def make(**changes):
        recipe_data.update(RLOO)
        prompts = [{"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(pairs(10))]
        recipe_data["data"]["train"] = {"path": str(write_jsonl(tmp_path / "p.jsonl", prompts))}
        recipe_data["training"] |= {"max_steps": 5, "save_steps": 2, "logging_steps": 1}
        for key, value in changes.items():
            recipe_data[key] = value
        return make_recipe(recipe_data).recipe

    return make


def weights(run):
    return load_file(next((Path(run) / "model").glob("*.safetensors")))


def test_rloo_run_reports_scores_kl_and_completions(rloo_recipe, capsys):
    recipe = rloo_recipe(samples={"prompts": 2, "max_new_tokens": 4})
    train(recipe, recipe.methods["rloo"])
    output = capsys.readouterr().out
    assert "sample: step 5, greedy" in output
    assert "step 0: policy and reference agree on 8 rows" in output
    assert "reads back" in output
    run = read_run(recipe.output_dir)
    speed = run.record["speed"]
    assert (speed["shared_prefix"], speed["stock_calls"]) == ("in use", 0)
    assert speed["tokens"] < speed["tokens_padded"]
    first, last = run.evals[0], run.evals[-1]
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert last["objective/kl"] != 0.0
    beta = recipe.methods["rloo"].beta
    assert last["loss"] == pytest.approx(beta * last["objective/kl"] - last["reward"], abs=1e-5)
    lines = (Path(recipe.output_dir) / "completions.jsonl").read_text("utf-8").splitlines()
    written = [row for row in map(json.loads, lines) if row["step"] == 5]
    assert len(written) == 10
    scores = [row["reward"] for row in written]
    assert sum(scores) / 10 == pytest.approx(last["reward"])
    assert {"place", "prompt", "completion", "tokens"} < written[0].keys()
    trained = {name for row in metric_rows(recipe.output_dir) if "loss" in row for name in row}
    assert trained >= {"reward", "reward_std", "entropy", "reward_length_correlation", "unscored"}
    assert not [name for name in trained if "clip_ratio" in name or name == "step_time"]


def test_judge_that_fails_in_training_loses_no_step(rloo_recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = {"function": {"name": f"{tmp_path / 'judge.py'}:score"}}
    uninterrupted = rloo_recipe(judge=judge, lora=LORA, output_dir=str(tmp_path / "uninterrupted"))
    train(uninterrupted, uninterrupted.methods["rloo"])
    # The first call tries the judge, three are of the evaluation before step 1.
    monkeypatch.setenv("FAIL_AT", "8")
    recipe = rloo_recipe(judge=judge, lora=LORA, output_dir=str(tmp_path / "stopped"))
    with stops_with("JDG006") as caught:
        train(recipe, recipe.methods["rloo"])
    assert "no quota left" in str(caught.value)
    assert "stopping at step 3: saved checkpoint-3" in capsys.readouterr().out
    monkeypatch.delenv("FAIL_AT")
    train(recipe, recipe.methods["rloo"])
    assert "resuming from" in capsys.readouterr().out
    one, other = weights(uninterrupted.output_dir), weights(recipe.output_dir)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rewards = [
        [row["reward"] for row in metric_rows(run.output_dir) if "loss" in row]
        for run in (uninterrupted, recipe)
    ]
    assert rewards[0] == rewards[1]


def test_evaluation_skips_completions_that_the_judge_cannot_score(rloo_recipe, tmp_path):
    """One of them is alone in its batch, which has no mean then."""
    (tmp_path / "judge.py").write_text(
        "def score(prompts, completions):\n"
        "    return [None if p == 'say red rude dog' else 2.0 for p in prompts]\n"
    )
    judge = {"function": {"name": f"{tmp_path / 'judge.py'}:score"}}
    recipe = rloo_recipe(judge=judge)
    training = recipe.training.model_copy(update={"per_device_eval_batch_size": 1, "max_steps": 3})
    recipe = recipe.model_copy(update={"training": training})
    train(recipe, recipe.methods["rloo"])
    last = read_run(recipe.output_dir).evals[-1]
    assert (last["reward"], last["unscored"]) == (2.0, pytest.approx(0.1))
    trained = [row for row in metric_rows(recipe.output_dir) if "frac_reward_zero_std" in row]
    assert [row["frac_reward_zero_std"] for row in trained] == [1.0] * len(trained)
    assert last["loss"] == pytest.approx(-2.0, abs=0.01)


@pytest.mark.memory
def test_rloo_dry_run_tries_the_judge_and_predicts_the_memory(rloo_recipe, tmp_path, capsys):
    recipe = rloo_recipe()
    result = dry_run(recipe, recipe.methods["rloo"])
    assert result.exit_code == 0
    output = capsys.readouterr().out
    assert "judge: function tests.support.judge:count_vowels gives 1 for 'yes'" in output
    memory = result.facts["memory"]
    assert memory["parts"]["reference"] > 0
    assert "judge" not in memory["parts"]
    broken = {"function": {"name": f"{tmp_path}/missing.py:score"}}
    recipe = rloo_recipe(judge=broken)
    assert dry_run(recipe, recipe.methods["rloo"]).problems[0].code == "JDG001"


def test_judge_parameters_are_those_of_its_models(rloo_recipe, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    count = sum(p.numel() for p in model.parameters())
    judges = {
        "reward_model": count - model.lm_head.weight.numel() + model.config.hidden_size,
        "implicit_reward": 2 * count,
    }
    for kind, expected in judges.items():
        recipe = rloo_recipe(judge={kind: {"name_or_path": str(tiny_model)}})
        assert judge_parameters(recipe) == expected
    assert judge_parameters(rloo_recipe()) == 0


def with_batch(recipe, completions):
    batch = {"global_batch_size": completions, "per_device_train_batch_size": 2}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=batch)})


@pytest.mark.slow
@pytest.mark.memory
def test_memory_of_a_generation_is_simulated_for_all_completions_of_a_step(rloo_recipe):
    recipe = with_batch(rloo_recipe(), 512)
    architectures = Architectures(load_base_config(recipe.model))
    peaks = simulate_run_step(recipe, recipe.methods["rloo"], architectures, GPU, length=40)
    assert peaks.highest is peaks.generation
    assert peaks.passes.total < peaks.generation.total


def test_memory_advice_samples_fewer_completions_at_once(rloo_recipe):
    recipe = with_batch(rloo_recipe(), 64)
    candidate = Candidate(recipe, recipe.methods["rloo"], Hardware(GPU, 1, "single", 20 * 2**30))

    def estimate(candidate):
        together = candidate.method.sampled_together(64)
        return Memory({"activations": together * 2**30}, "generation", 64, 2)

    (advice,) = advise(candidate, estimate(candidate), estimate)
    assert advice.change == "rloo.sampling_batch_size=8"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rloo": {"num_generations": 3}}, "write a multiple of rloo.num_generations"),
        ({"rloo": {"max_completion_length": 64}}, "leaves no room for a prompt"),
        ({"rloo": {"reward_clip_range": [1.0, 0.0]}}, "must be below the highest"),
    ],
)
def test_recipe_that_rloo_cannot_run_is_refused(rloo_recipe, changes, says):
    with pytest.raises(RecipeError, match=says):
        rloo_recipe(**changes)


@pytest.mark.parametrize("judge", [None, {"scores": {"path": "s.jsonl"}}])
def test_rloo_without_a_judge_of_new_completions_is_refused(rloo_recipe, recipe_data, judge):
    recipe = rloo_recipe(judge=judge)  # dpo, which needs none, is in this recipe, too
    with stops_with("JDG008"):
        train(recipe, recipe.methods["rloo"])
    for name in set(METHODS) - {"rloo"}:
        recipe_data.pop(name, None)
    with pytest.raises(RecipeError, match="JDG008"):
        rloo_recipe(judge=judge)


@pytest.mark.parametrize("packs", ["on", "off"])
def test_prompts_padded_on_the_left_keep_their_positions(rloo_recipe, tiny_model, tmp_path, packs):
    """Check gpt2, whose positions are absolute."""
    model = tiny("gpt2", vocab_size=300, n_positions=128)
    model.save_pretrained(tmp_path / "gpt2")
    load_tokenizer(Model(name_or_path=str(tiny_model))).save_pretrained(tmp_path / "gpt2")
    recipe = rloo_recipe(
        model={"name_or_path": str(tmp_path / "gpt2")}, performance={"shared_prefix": packs}
    )
    trainer, _ = trainer_of(recipe, "rloo")
    ids = torch.tensor([[9, 8, 7, 6, 5, 4]])

    def scores(padding):
        padded = torch.nn.functional.pad(ids, (padding, 0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (padding, 0))
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(trainer.model, padded, mask, 3)[0]

    torch.testing.assert_close(scores(5), scores(0))


def test_equal_share_skips_completions_without_a_score():
    nan = math.nan
    scores = [[1.0, 1.0, 1.0], [1.0, 1.0, 2.0], [nan, 3.0, 3.0], [nan, nan, 4.0], [nan, 1.0, 2.0]]
    assert equal_share(torch.tensor(scores)) == pytest.approx(3 / 5)
    assert equal_share(torch.full((2, 2), nan)) == 1.0


def test_prompt_sampler_repeats_each_prompt_and_fills_the_last_step():
    sampler = PromptSampler(5, per_step=2, generations=3, repeats=2, seed=1)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 3 * 2 * 3 * 2
    steps = [rows[i : i + 12] for i in range(0, 36, 12)]
    for step in steps:
        assert step[:6] == step[6:]
        assert step[0:3] == [step[0]] * 3
    order = [step[i] for step in steps for i in (0, 3)]
    assert sorted(order[:5]) == list(range(5))
    assert order[5] == order[0]
    assert list(sampler) == rows
    sampler.set_epoch(1)
    assert list(sampler) != rows
