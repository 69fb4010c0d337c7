"""Metrics per token, per row and by length, compared with a direct call of the model."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from prefcli.data import tokenize
from prefcli.model import load_policy, load_tokenizer
from prefcli.training.mixins.metrics_mixin import MetricsMixin
from prefcli.training.run import train
from tests.support.tiny_runs import labelled, metric_rows, trainer_of, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


def by_hand(model, tokenizer, row, side, before=()) -> tuple[float, int]:
    """Return (log-probability of a response, its number of tokens), by plain transformers."""
    ids = tokenize(row, tokenizer)
    prompt, answer = [*before, *ids["prompt_ids"]], ids[f"{side}_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    logps = logits.log_softmax(-1)[:-1].gather(1, torch.tensor([prompt + answer])[0, 1:, None])
    return float(logps[-len(answer) :].sum()), len(answer)


def mean_end(model, tokenizer, rows, side, before=()) -> float:
    """The mean probability of the last token of a response, by plain transformers."""
    ends = []
    for row in rows:
        ids = tokenize(row, tokenizer)
        text = [*before, *ids["prompt_ids"], *ids[f"{side}_ids"]]
        assert text[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text[:-1]])).logits[0, -1]
        ends.append(float(logits.softmax(-1)[text[-1]]))
    return sum(ends) / len(ends)


@pytest.fixture
def uneven(recipe_data):
    """A recipe with ten eval rows in batches of four, so that the last batch is smaller."""
    recipe_data["training"]["max_steps"] = 3
    return recipe_data


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo"])
def test_evaluation_of_pairs_averages_over_rows_and_tokens(uneven, make_recipe, name):
    recipe = make_recipe(uneven).recipe
    trainer, inputs = trainer_of(recipe, name)
    metrics = trainer.evaluate()
    model, tokenizer = load_policy(recipe.model, torch.float32, 0), load_tokenizer(recipe.model)
    model.eval()
    # trl's ORPO and CPO put a BOS before the prompt.
    before = [tokenizer.bos_token_id] if recipe.methods[name].trainer.adds_special_tokens else []
    chosen, rejected = (
        [by_hand(model, tokenizer, row, side, before) for row in inputs.eval.rows]
        for side in ("chosen", "rejected")
    )
    for side, scores in (("chosen", chosen), ("rejected", rejected)):
        mean = sum(logp for logp, _ in scores) / sum(n for _, n in scores)
        assert metrics[f"eval_logps/{side}_per_token"] == pytest.approx(mean, rel=1e-5)
        assert metrics[f"eval_tokens/{side}"] == sum(n for _, n in scores) / len(scores)
    nll = -sum(logp for logp, _ in chosen) / sum(n for _, n in chosen)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    end = mean_end(model, tokenizer, inputs.eval.rows, "chosen", before)
    assert metrics["eval_end_probability"] == pytest.approx(end, rel=1e-4)
    if name in ("simpo", "orpo"):  # rewards are beta times the mean over a response's tokens
        beta = trainer.beta
        margins = [beta * (c / n - r / m) for (c, n), (r, m) in zip(chosen, rejected, strict=True)]
        longer = [
            margin
            for margin, (_, n), (_, m) in zip(margins, chosen, rejected, strict=True)
            if n > m
        ]
        assert metrics["eval_rewards/margins"] == pytest.approx(
            sum(margins) / 10, rel=1e-4, abs=1e-6
        )
        assert metrics["eval_rewards/accuracies"] == sum(m > 0 for m in margins) / 10
        assert longer
        assert metrics["eval_rewards/margins_chosen_longer"] == pytest.approx(
            sum(longer) / len(longer), rel=1e-4, abs=1e-6
        )
        assert "eval_reference_kl" not in metrics
    else:
        assert metrics["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["eval_reference_kl"] == pytest.approx(0.0, abs=1e-9)


def test_evaluation_of_labelled_rows_averages_over_rows(uneven, make_recipe, tmp_path):
    uneven["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "l.jsonl", labelled(10)))}
    uneven["data"]["train"] = {"path": str(write_jsonl(tmp_path / "t.jsonl", labelled(24)))}
    recipe = make_recipe(uneven).recipe
    trainer, inputs = trainer_of(recipe, "kto")
    metrics = trainer.evaluate()
    model, tokenizer = load_policy(recipe.model, torch.float32, 0), load_tokenizer(recipe.model)
    rows = list(inputs.eval.rows)
    scores = [by_hand(model.eval(), tokenizer, row, "completion") for row in rows]
    for side, label in (("chosen", True), ("rejected", False)):
        mine = [score for score, row in zip(scores, rows, strict=True) if row["label"] is label]
        mean = sum(logp for logp, _ in mine) / sum(n for _, n in mine)
        assert metrics[f"eval_logps/{side}_per_token"] == pytest.approx(mean, rel=1e-5)
        assert metrics[f"eval_tokens/{side}"] == sum(n for _, n in mine) / len(mine)
        assert metrics[f"eval_rewards/{side}"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["eval_reference_kl"] == pytest.approx(0.0, abs=1e-9)
    desirable = [row for row in rows if row["label"]]
    end = mean_end(model, tokenizer, desirable, "completion")
    assert metrics["eval_end_probability"] == pytest.approx(end, rel=1e-4)


def test_evaluation_of_demonstrations_averages_over_tokens(uneven, make_recipe):
    recipe = make_recipe(uneven).recipe
    trainer, inputs = trainer_of(recipe, "sft")
    metrics = trainer.evaluate()
    model, tokenizer = load_policy(recipe.model, torch.float32, 0), load_tokenizer(recipe.model)
    scores = [by_hand(model.eval(), tokenizer, row, "completion") for row in inputs.eval.rows]
    nll = -sum(logp for logp, _ in scores) / sum(n for _, n in scores)
    assert metrics["eval_loss"] == pytest.approx(nll, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    end = mean_end(model, tokenizer, inputs.eval.rows, "completion")
    assert metrics["eval_end_probability"] == pytest.approx(end, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "override"),
    [("orpo", "performance.shared_prefix=off"), ("sft", "sft.packing=true")],
)
def test_end_probability_is_the_same_in_every_forward(uneven, make_recipe, name, override):
    usual, _ = trainer_of(make_recipe(uneven).recipe, name)
    other, _ = trainer_of(make_recipe(uneven, override).recipe, name)
    ends = [trainer.evaluate()["eval_end_probability"] for trainer in (usual, other)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


@pytest.mark.parametrize(
    ("sections", "options"),
    [
        ({}, {}),
        ({"lora": LORA}, {"ld_alpha": 0.3}),
        ({"reference": {"precompute": True}}, {"ld_alpha": 0.3}),
        ({"reference": {"precompute": True}, "lora": LORA}, {}),
    ],
    ids=["full", "lora ld_alpha", "precomputed ld_alpha", "precomputed lora"],
)
def test_training_step_logs_per_token_and_by_length(uneven, make_recipe, sections, options):
    recipe = make_recipe(uneven | sections | {"dpo": options}).recipe
    train(recipe, recipe.methods["dpo"])
    rows = [row for row in metric_rows(recipe.output_dir) if "loss" in row]
    for row in rows:
        for side in ("chosen", "rejected"):
            per_token = row[f"logps/{side}_per_token"]
            if not options:  # LD-DPO's sums are weighted
                assert per_token * row[f"tokens/{side}"] == pytest.approx(
                    row[f"logps/{side}"], rel=1e-4
                )
            assert -6.5 < per_token < -4.5  # near ln 300, as the weights are random
        assert row["perplexity"] == pytest.approx(math.exp(-row["logps/chosen_per_token"]))
        assert row["tokens_per_second"] > 0
        assert row["memory_gib"] > 0.05
    last = [row for row in metric_rows(recipe.output_dir) if "eval_loss" in row][-1]
    parts = [last[f"eval_rewards/margins_chosen_{length}"] for length in ("longer", "shorter")]
    assert min(parts) <= last["eval_rewards/margins"] <= max(parts)
    # Without an adapter to turn off, a precomputed reference is not in memory.
    assert ("eval_reference_kl" in last) == ("reference" not in sections or "lora" in sections)


class _Clock(TrainerCallback):
    """A clock that advances 1 second per optimizer step and 100 per evaluation or checkpoint."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.now += 1

    def on_evaluate(self, *args, **kwargs):
        self.now += 100

    def on_save(self, *args, **kwargs):
        self.now += 100


@pytest.mark.parametrize("logging_steps", [1, 2, 3])
def test_tokens_per_second_counts_steps_without_evaluations_and_checkpoints(
    uneven, make_recipe, logging_steps, monkeypatch
):
    uneven["training"] |= {
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 3,
        "logging_steps": logging_steps,
    }
    clock = _Clock()
    monkeypatch.setattr(MetricsMixin, "clock", staticmethod(clock))
    trainer, _ = trainer_of(make_recipe(uneven).recipe, "dpo")
    trainer.add_callback(clock)
    trainer.train()
    rates = [row["tokens_per_second"] for row in trainer.state.log_history if "loss" in row]
    steps = [row["step"] for row in trainer.state.log_history if "loss" in row]
    lengths = [len(ids) for ids in _sequences(trainer)]
    # 8 pairs per step, so 16 sequences.
    for rate in rates:
        assert 16 * min(lengths) <= rate <= 16 * max(lengths), (rates, steps)


def _sequences(trainer):
    for row in trainer.train_dataset:
        for side in ("chosen_ids", "rejected_ids"):
            yield row["prompt_ids"] + row[side]


def test_reference_kl_equals_the_sum_over_the_vocabulary(uneven, make_recipe):
    recipe = make_recipe(uneven).recipe
    train(recipe, recipe.methods["dpo"])
    metrics = metric_rows(recipe.output_dir)[-1]["eval_reference_kl"]
    _, inputs = trainer_of(make_recipe(uneven, "output_dir=unused").recipe, "dpo")
    tokenizer = load_tokenizer(recipe.model)
    reference = load_policy(recipe.model, torch.float32, 0).eval()
    trained = AutoModelForCausalLM.from_pretrained(f"{recipe.output_dir}/model").eval()
    total = tokens = 0
    for row in inputs.eval.rows:
        ids = tokenize(row, tokenizer)
        batch = torch.tensor([ids["prompt_ids"] + ids["chosen_ids"]])
        with torch.no_grad():
            p, q = (m(input_ids=batch).logits[0].double().softmax(-1) for m in (trained, reference))
        start = len(ids["prompt_ids"]) - 1
        total += float((p * (p / q).log())[start:-1].sum())
        tokens += len(ids["chosen_ids"])
    assert metrics == pytest.approx(total / tokens, rel=1e-3)
    assert metrics > 1e-6
