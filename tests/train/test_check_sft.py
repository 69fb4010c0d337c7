"""check-sft: perplexities against a loop over single rows, and the gate."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli import cli
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import GateError
from prefcli.evaluation.check_sft import check_sft
from prefcli.evaluation.logprobs import score
from prefcli.methods import METHODS
from prefcli.packed_forward.install import FastForward
from prefcli.recipe.sections import Performance
from prefcli.training.run import train
from tests.support.tiny_runs import labelled, pairs, write_jsonl


def plain_nll(model, tokenizer, prompt: str, completion: str, max_length: int = 64) -> list[float]:
    """Return the negative log-prob of each completion token."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"][:max_length]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return [
        float(-torch.log_softmax(logits[t - 1].double(), -1)[ids[t]])
        for t in range(max(start, 1), len(ids))
    ]


def perplexity(nlls: list[list[float]]) -> float:
    return math.exp(sum(map(sum, nlls)) / sum(map(len, nlls)))


@pytest.fixture
def plain(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda prompt, completion: plain_nll(model, tokenizer, prompt, completion)


def test_check_sft_pairs_equals_a_plain_loop(recipe_data, make_recipe, plain):
    report = check_sft(make_recipe(recipe_data).recipe)
    rows = pairs(40)[30:]
    chosen = [plain(r["prompt"], r["chosen"]) for r in rows]
    rejected = [plain(r["prompt"], r["rejected"]) for r in rows]
    means = [sum(n) / len(n) for n in chosen]
    assert report.rows == 10
    assert report.tokens == sum(map(len, chosen))
    assert report.perplexity == pytest.approx(perplexity(chosen), rel=1e-5)
    assert report.rejected_perplexity == pytest.approx(perplexity(rejected), rel=1e-5)
    assert report.row_perplexity == pytest.approx(math.exp(sum(means) / 10), rel=1e-5)
    more_likely = [sum(c) / len(c) < sum(r) / len(r) for c, r in zip(chosen, rejected, strict=True)]
    assert report.chosen_more_likely == sum(more_likely) / 10
    worst = max(range(10), key=means.__getitem__)
    place, value = report.worst[0]
    assert place.endswith(f"eval.jsonl: row {worst + 1}")
    assert value == pytest.approx(math.exp(means[worst]), rel=1e-5)


def test_check_sft_labelled_rows_scores_the_desirable_ones(
    recipe_data, make_recipe, tmp_path, plain
):
    rows = labelled(12)
    recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "l.jsonl", rows))}
    for name in METHODS.keys() - {"kto"}:
        del recipe_data[name]
    report = check_sft(make_recipe(recipe_data).recipe)
    desirable = [plain(r["prompt"], r["completion"]) for r in rows if r["label"]]
    undesirable = [plain(r["prompt"], r["completion"]) for r in rows if not r["label"]]
    assert report.perplexity == pytest.approx(perplexity(desirable), rel=1e-5)
    assert report.rejected_perplexity == pytest.approx(perplexity(undesirable), rel=1e-5)
    assert report.chosen_more_likely is None


def test_check_sft_texts_scores_every_token(recipe_data, make_recipe, tmp_path, plain):
    rows = [{"text": r["prompt"] + r["chosen"]} for r in pairs(6)]
    recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "t.jsonl", rows))}
    for name in METHODS.keys() - {"sft"}:
        del recipe_data[name]
    report = check_sft(make_recipe(recipe_data).recipe)
    assert report.perplexity == pytest.approx(
        perplexity([plain("", r["text"]) for r in rows]), rel=1e-5
    )
    assert report.rejected_perplexity is None


@pytest.mark.parametrize("how", ["stock", "fast"])
def test_score_with_autocast_computes_in_bfloat16_on_a_cpu(tiny_model, how):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = [([3, 4, 5], [6, 7, 8, 9]), ([3, 4, 5], [7, 7])]

    def scores(*, autocast):
        fast = torch.bfloat16 if autocast else None
        speed = FastForward(Performance(), "single", 48, autocast=fast) if how == "fast" else None
        results = score(model, rows, max_length=48, autocast=autocast, speed=speed)
        assert speed is None or speed.reason is None
        return [result.per_token for result in results]

    single, half = scores(autocast=False), scores(autocast=True)
    assert single != half
    assert half == pytest.approx(single, abs=0.05)


@pytest.mark.parametrize("how", ["stock", "fast", "under an adapter", "another family"])
def test_score_is_independent_of_batches(tiny_model, how):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    if how == "under an adapter":
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config)
    if how == "another family":
        model.config.model_type = "unknown_family"
    speed = None if how == "stock" else FastForward(Performance(), "single", max_length=48)
    generator = torch.Generator().manual_seed(3)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 200, (length,), generator=generator).tolist()

    rows = [(ids(0, 30), ids(1, 40)) for _ in range(50)]
    # Other answers to the first prompts, one duplicate, and more rows than fit into a batch.
    rows += [(prompt, ids(1, 40)) for prompt, _ in rows[:20]] + rows[:1]
    rows += [(rows[1][0], ids(1, 4)) for _ in range(70)]
    rows += [([], [5]), ([5], []), ([1] * 60, [2, 3])]
    one_by_one = score(model, rows, max_length=48, tokens_per_batch=1)
    together = score(model, rows, max_length=48, tokens_per_batch=700, speed=speed)
    if speed is not None:
        assert (speed.counts.fast > 0) == (how != "another family")
        assert (speed.reason is None) == (how != "another family")
        # The packed forward pass is uninstalled.
        base = model.get_base_model() if how == "under an adapter" else model
        assert "forward" not in vars(base)
        assert base.config._attn_implementation == "sdpa"
    # A single first token has no context; an empty completion and a prompt of max_length tokens
    # have no scored tokens.
    assert one_by_one[-3:] == together[-3:] == [None, None, None]
    for a, b in zip(one_by_one[:-3], together[:-3], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.tokens == b.tokens
            assert a.logp == pytest.approx(b.logp, rel=1e-5)


def run_cli(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_check_sft_command_exit_codes_and_json(
    recipe_data, make_recipe, monkeypatch, capsys, tmp_path
):
    recipe_data["check_sft"] = {"max_perplexity": 1000}
    make_recipe(recipe_data)
    path = str(tmp_path / "recipe.yaml")
    assert run_cli(monkeypatch, "check-sft", path) == 0
    assert "passed" in capsys.readouterr().out
    assert run_cli(monkeypatch, "check-sft", path, "check_sft.max_perplexity=2") == 3
    assert "FAILED" in capsys.readouterr().out
    assert run_cli(monkeypatch, "check-sft", path, "check_sft.max_perplexity=2", "--json") == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["passed"] is False
    assert report["perplexity"] > 2
    assert len(report["worst"]) == 5
    assert "FAILED" in err


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.needs_sft])
def test_train_failed_gate_stops_the_run(recipe_data, make_recipe, name):
    recipe_data["check_sft"] = {"max_perplexity": 2, "on_fail": "stop"}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(GateError, match="TRN003"):
        train(recipe, recipe.methods[name])
    run = RunDir(recipe.output_dir)
    assert run.read_run()["status"] == "failed"
    assert not run.model.exists()
    # No step was trained, so the hint of the message works in the same folder.
    again = make_recipe(recipe_data, "check_sft.on_fail=warn").recipe
    train(again, again.methods[name])
    assert run.read_run()["status"] == "finished"


@pytest.mark.parametrize(("name", "on_fail"), [("dpo", "warn"), ("sft", "stop"), ("orpo", "stop")])
def test_train_without_gate_continues(recipe_data, make_recipe, name, on_fail, capsys):
    """`warn` trains; sft and orpo start from base models, so they are not gated."""
    recipe_data["check_sft"] = {"max_perplexity": 2, "on_fail": on_fail}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    assert RunDir(recipe.output_dir).model.exists()
    assert ("warning: check-sft failed; training starts anyway" in capsys.readouterr().out) == (
        on_fail == "warn"
    )
