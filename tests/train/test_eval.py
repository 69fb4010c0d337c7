"""eval: metrics against hand-written formulas, intervals against closed forms, and the report."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli.errors import RecipeError
from prefcli.evaluation.bootstrap import Bootstrap, Gap, Mean, Ordered, Perplexity
from prefcli.evaluation.eval_report import WITHIN_NOISE, report_lines
from prefcli.evaluation.evaluate import evaluate
from tests.support.pages import read
from tests.support.plain_scores import log_softmax_sum
from tests.support.tiny_runs import labelled, pairs, write_jsonl

ROWS = [row | {"subset": "ab"[i % 2]} for i, row in enumerate(pairs(6))]


@pytest.fixture
def eval_recipe(recipe_data, make_recipe, tmp_path):
    def make(rows=ROWS, **changes):
        path = write_jsonl(tmp_path / "held_out.jsonl", rows)
        recipe_data["data"]["eval"] = {"path": str(path)}
        return make_recipe(recipe_data | changes).recipe

    return make


def test_evaluate_full_model_and_adapter_equals_a_plain_formula(tiny_model, tuned, eval_recipe):
    recipe = eval_recipe()
    models = [str(tuned / "full"), str(tuned / "adapter"), str(tiny_model)]
    evaluation = evaluate(recipe, recipe.dpo, models, columns=["subset"])

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    start = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    full = AutoModelForCausalLM.from_pretrained(tuned / "full").eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, tuned / "adapter").eval()
    for model, metrics in zip((full, adapted, start), evaluation.total.models, strict=True):
        chosen, rejected, reference = (
            [log_softmax_sum(m, tokenizer, row["prompt"], row[side]) for row in ROWS]
            for m, side in ((model, "chosen"), (model, "rejected"), (start, "chosen"))
        )
        other = [log_softmax_sum(start, tokenizer, r["prompt"], r["rejected"]) for r in ROWS]
        rewards = [0.1 * (c - r) for (c, _), (r, _) in zip(chosen, reference, strict=True)]
        others = [0.1 * (c - r) for (c, _), (r, _) in zip(rejected, other, strict=True)]
        margins = [a - b for a, b in zip(rewards, others, strict=True)]
        per_token = sum(logp for logp, _ in chosen) / sum(count for _, count in chosen)
        wins = [0.5 if model is start else float(margin > 0) for margin in margins]
        expected = {
            "rewards/accuracies": np.mean(wins),
            "rewards/margins": np.mean(margins),
            "rewards/chosen": np.mean(rewards),
            "rewards/rejected": np.mean(others),
            "logps/accuracies": np.mean(
                [a > b for (a, _), (b, _) in zip(chosen, rejected, strict=True)]
            ),
            "logps/accuracies_per_token": np.mean(
                [a / n > b / m for (a, n), (b, m) in zip(chosen, rejected, strict=True)]
            ),
            "logps/chosen_per_token": per_token,
            "perplexity": math.exp(-per_token),
        }
        for name, value in expected.items():
            assert metrics[name].value == pytest.approx(value, rel=1e-4, abs=1e-6), name
        kl = metrics["reference_kl"].value
        assert kl == 0 if model is start else kl > 0.01
        assert metrics["perplexity"].low < metrics["perplexity"].value < metrics["perplexity"].high
    subsets = evaluation.groups["subset"]
    assert {label: part.rows for label, part in subsets.items()} == {"a": 3, "b": 3}
    assert sum(part.rows for part in evaluation.groups["length"].values()) == len(ROWS)
    mean = np.mean([part.models[0]["rewards/margins"].value for part in subsets.values()])
    assert mean == pytest.approx(evaluation.total.models[0]["rewards/margins"].value)
    text = "\n".join(report_lines(evaluation))
    assert "B minus A" in text
    assert max(map(len, text.splitlines()[7:])) <= 80  # names of temporary folders are long


def test_evaluate_labelled_rows_orders_desirable_before_undesirable(tuned, eval_recipe, tiny_model):
    recipe = eval_recipe(labelled(8))
    (metrics,) = evaluate(recipe, recipe.kto, [str(tuned / "full")]).total.models
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    full, start = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (tuned / "full", tiny_model)
    )
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for row in labelled(8):
        sums = [
            log_softmax_sum(m, tokenizer, row["prompt"], row["completion"]) for m in (full, start)
        ]
        rewards[row["label"]].append(0.1 * (sums[0][0] - sums[1][0]))
    wins = [good > bad for good, bad in itertools.product(rewards[True], rewards[False])]
    assert metrics["rewards/accuracies"].value == pytest.approx(np.mean(wins))
    margin = np.mean(rewards[True]) - np.mean(rewards[False])
    assert metrics["rewards/margins"].value == pytest.approx(margin, rel=1e-4)


def test_bootstrap_interval_of_a_share_equals_the_normal_approximation():
    draw = np.random.default_rng(5)
    wins = (draw.random(600) < 0.7).astype(float)
    ones, rows = np.ones(600), np.arange(600)
    share = Mean(wins, ones, is_share=True)
    error = 1.96 * math.sqrt(wins.mean() * (1 - wins.mean()) / 600)
    bootstrap = Bootstrap(rows)
    estimate = bootstrap.estimate(share, bootstrap.values([share], [rows])[0][0], rows)
    assert estimate.low == pytest.approx(wins.mean() - error, abs=0.005)
    assert estimate.high == pytest.approx(wins.mean() + error, abs=0.005)
    # Four rows per prompt that are all equal are one observation.
    four, repeated = np.repeat(rows[:150], 4), np.repeat(wins[:150], 4)
    share = Mean(repeated, ones, is_share=True)
    bootstrap = Bootstrap(four)
    estimate = bootstrap.estimate(share, bootstrap.values([share], [rows])[0][0], rows)
    error = 1.96 * math.sqrt(repeated.mean() * (1 - repeated.mean()) / 150)
    assert estimate.high - estimate.low == pytest.approx(2 * error, rel=0.08)


def test_bootstrap_interval_of_a_paired_difference_equals_its_standard_error():
    draw = np.random.default_rng(6)
    hard = draw.normal(size=500)  # both models find the same rows hard
    first, second = (hard + 0.1 * draw.normal(size=500) for _ in range(2))
    rows, ones = np.arange(500), np.ones(500)
    values = Bootstrap(rows).values([Mean(first, ones), Mean(second, ones)], [rows])[0]
    low, high = np.percentile(values[1] - values[0], [2.5, 97.5])
    error = (second - first).std() / math.sqrt(500)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_bootstrap_share_without_errors_has_the_exact_binomial_bound():
    rows, ones = np.arange(10), np.ones(10)
    bootstrap, share = Bootstrap(rows, resamples=50), Mean(ones, ones, is_share=True)
    estimate = bootstrap.estimate(share, bootstrap.values([share], [rows])[0][0], rows)
    assert (estimate.low, estimate.high) == (pytest.approx(0.025**0.1), 1.0)


def test_ordered_with_ties_and_weights_equals_a_loop_over_pairs():
    draw = np.random.default_rng(7)
    scores = draw.integers(0, 6, 30).astype(float)
    labels = draw.random(30) < 0.4
    weights = draw.integers(0, 3, (3, 30)).astype(float)
    for row, value in zip(weights, Ordered(scores, labels)(weights), strict=True):
        pairs_ = [
            (row[i] * row[j], (np.sign(scores[i] - scores[j]) + 1) / 2)
            for i, j in itertools.product(np.flatnonzero(labels), np.flatnonzero(~labels))
        ]
        expected = sum(w * x for w, x in pairs_) / sum(w for w, _ in pairs_)
        assert value == pytest.approx(expected)
    mean = Mean(scores, np.ones(30))
    assert Gap(mean, mean)(weights) == pytest.approx([0, 0, 0])
    assert Perplexity(mean)(weights) == pytest.approx(np.exp(-mean(weights)))


def test_eval_command_of_a_run_compares_its_model_with_others(
    run_folder, tiny_model, run_json, tmp_path
):
    # The columns of RewardBench.
    rows = [
        {**row, "chosen_model": "x", "rejected_model": "y", "id": i, "subset": "ab"[i % 2]}
        for i, row in enumerate(pairs(6))
    ]
    data, output = write_jsonl(tmp_path / "bench.jsonl", rows), tmp_path / "out" / "eval.json"
    page = tmp_path / "eval.html"
    code, document, err = run_json(
        "eval", run_folder, tiny_model, "--data", data, "--output", output, "--html", page
    )
    assert code == 0
    text = " ".join(read(page.read_text("utf-8")).text.split())
    assert f"A {run_folder / 'model'} B {tiny_model}" in text
    assert WITHIN_NOISE in text
    assert "By subset" in text
    assert "a (3 rows)" in text
    assert document == json.loads(output.read_text("utf-8"))
    assert document["models"] == [str(run_folder / "model"), str(tiny_model)]
    assert document["beta"] == 0.1
    assert set(document["groups"]["subset"]) == {"a", "b"}
    difference = document["total"]["differences"][str(tiny_model)]["logps/accuracies"]
    assert difference["within_noise"] == (difference["low"] <= 0 <= difference["high"])
    assert WITHIN_NOISE in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--group", "topik"], "DAT009"),
        (["--data", "no-such.jsonl"], "DAT003"),
        (["./no-such-model"], "MDL001"),
        (["no model!"], "MDL001"),
        (["data.eval=null"], "RCP040"),
    ],
)
def test_eval_command_with_a_wrong_argument_is_an_error_with_its_code(
    run_folder, run_json, arguments, code
):
    exit_code, document, _ = run_json("eval", run_folder, *arguments)
    assert exit_code == 2
    (problem,) = document["problems"]
    assert problem["code"] == code


def test_evaluate_without_reference_measures_likelihoods_only(tuned, eval_recipe):
    recipe = eval_recipe(model={"name_or_path": "./gone"})
    model = str(tuned / "full")
    (metrics,) = evaluate(recipe, recipe.dpo, [model], with_reference=False).total.models
    assert "rewards/accuracies" not in metrics
    assert metrics["perplexity"].value > 1
    with pytest.raises(RecipeError, match="named twice"):
        evaluate(recipe, recipe.dpo, [model, model], with_reference=False)
