"""Demonstrations mixed into preference rows: the loss, the fraction, and no other change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from prefcli.data import tokenize
from prefcli.errors import RecipeError
from prefcli.training.dry_run import dry_run
from prefcli.training.mixins.sft_mix import Schedule
from prefcli.training.run import train
from prefcli.trl_integration.trl_args import repeated_rows
from tests.support.tiny_runs import (
    UNTIMED,
    interrupt,
    metric_rows,
    pairs,
    sentence,
    trainer_of,
    write_jsonl,
)

PREFERENCE = ["dpo", "ipo", "kto", "orpo", "simpo", "cpo"]
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}


@pytest.fixture
def mixed_data(recipe_data, tmp_path) -> dict:
    """A recipe with every method, and demonstrations that are not in the pairs."""
    rows = [
        {"prompt": f"write {sentence(i, 2)}", "completion": f" {sentence(i + 5, 1 + i % 6)} please"}
        for i in range(11)
    ]
    recipe_data["sft_mix"] = {
        "fraction": 0.25,
        "data": {"path": str(write_jsonl(tmp_path / "demonstrations.jsonl", rows))},
        "weight": 0.7,
    }
    return recipe_data


def weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(next((Path(folder) / "model").glob("*.safetensors")))


def losses(folder: str | Path) -> list[float]:
    return [row["loss"] for row in metric_rows(folder) if "loss" in row]


def untimed(folder: str | Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.endswith(UNTIMED)} for row in metric_rows(folder)
    ]


@given(
    fraction=st.floats(0.01, 0.5),
    rows=st.integers(1, 200),
    micro=st.integers(1, 32),
    accumulation=st.integers(1, 5),
    step=st.integers(0, 400),
)
def test_schedule_keeps_the_fraction_at_every_step(fraction, rows, micro, accumulation, step):
    schedule = Schedule(fraction, rows, micro, accumulation)
    batch = schedule.first_batch(step)
    seen, mixed = schedule.preference_rows(batch), schedule.demonstrations(batch)
    exact = seen * fraction / (1 - fraction)
    assert exact - 1 - 1e-6 <= mixed <= exact + 1e-6
    one_more = schedule.preference_rows(batch + 1) - seen
    assert 1 <= one_more <= micro
    # Other micro-batches or more processes: the same demonstrations in each step.
    one_batch = Schedule(fraction, rows, micro * accumulation, 1)
    assert one_batch.demonstrations(one_batch.first_batch(step)) == mixed


def test_schedule_with_a_partial_last_step_starts_the_next_epoch_correctly():
    """10 rows in micro-batches of 3, two per step: 6 + 4 rows, so the second epoch starts at 10."""
    schedule = Schedule(0.5, rows=10, micro_batch=3, accumulation=2)
    starts = [schedule.preference_rows(schedule.first_batch(step)) for step in range(5)]
    assert starts == [0, 6, 10, 16, 20]
    assert schedule.demonstrations(schedule.first_batch(3)) == 16


def test_repeated_rows_fill_the_last_batches_of_all_processes():
    """Check the rows that accelerate repeats with several processes, which count as seen."""
    assert repeated_rows(10, micro_batch=4, world=2) == 2
    assert repeated_rows(12, micro_batch=4, world=2) == 0
    assert repeated_rows(10, micro_batch=4, world=1) == 0


def oracle(trainer, positions) -> torch.Tensor:
    """Mean negative log-likelihood over all response tokens, each row alone and unpadded."""
    model = trainer.model
    scores = []
    for position in positions:
        row = trainer.stream.split.rows[trainer.stream.index(position)]
        ids = tokenize(row, trainer.processing_class)
        prompt, completion = ids["prompt_ids"], ids["completion_ids"]
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        scores.append(logps.gather(1, torch.tensor(completion)[:, None])[:, 0])
    return -torch.cat(scores).mean()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", PREFERENCE)
def test_mixed_step_matches_the_formula_in_loss_and_gradient(mixed_data, make_recipe, name, lora):
    """L_preference + weight (S / P) NLL, over a step of two micro-batches; SGD shows the gradient.

    8 preference rows and 2.67 demonstrations a step: two in the first, three in the second.
    """
    if lora:
        mixed_data["lora"] = lora
    mixed_data["training"] |= {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "max_steps": 1,
    }
    plain = {key: value for key, value in mixed_data.items() if key != "sft_mix"}
    moved = {}
    for kind, data in (("plain", plain), ("mixed", mixed_data)):
        data = {**data, "output_dir": f"{mixed_data['output_dir']}-{kind}"}
        trainer = trainer_of(make_recipe(data).recipe, name)[0]
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved[kind] = {
            n: p.detach() - before[n]
            for n, p in trainer.model.named_parameters()
            if p.requires_grad
        }
    log = next(row for row in trainer.state.log_history if "loss" in row)
    trainer.model.load_state_dict(before, strict=False)
    trainer.model.eval().zero_grad()
    nll = oracle(trainer, range(2))
    nll.backward()
    assert log["sft_mix/loss"] == pytest.approx(float(nll), rel=1e-5)
    assert log["sft_mix/perplexity"] == pytest.approx(float(nll.exp()), rel=1e-5)
    assert log["sft_mix/fraction"] == pytest.approx(2 / 10)
    assert log["loss"] == pytest.approx(log["preference_loss"] + 0.7 * 2 / 8 * float(nll), rel=1e-5)
    for parameter, value in trainer.model.named_parameters():
        if not value.requires_grad:
            continue
        step = -0.5 * 0.7 * 2 / 8 * value.grad
        got = moved["mixed"][parameter] - moved["plain"][parameter]
        # A weight near 1 is stored in steps of 6e-8 to 1.2e-7, twice here.
        torch.testing.assert_close(got, step, rtol=2e-4, atol=3e-7)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("ipo", "simpo", "cpo", "kto")))
        for n in PREFERENCE
    ],
)
def test_mixed_run_keeps_preference_rows_and_their_metrics(mixed_data, make_recipe, name):
    """Compare the steps with and without the mix, with a policy that does not change."""
    mixed_data["training"] |= {"max_steps": 7, "learning_rate": 1e-30}
    seen = []
    for extra in (mixed_data.pop("sft_mix"), None):
        data = {**mixed_data, "output_dir": f"{mixed_data['output_dir']}-{bool(extra)}"}
        recipe = make_recipe({**data, "sft_mix": extra} if extra else data).recipe
        train(recipe, recipe.methods[name])
        seen.append(untimed(recipe.output_dir))
    with_, without = seen
    compared = 0
    for mixed, plain in zip(with_, without, strict=True):
        for key in plain.keys() - {"grad_norm", "loss"}:
            assert mixed[key] == pytest.approx(plain[key], rel=1e-6, abs=1e-9), key
            compared += 1
        if "loss" in plain:
            assert mixed["preference_loss"] == pytest.approx(plain["loss"], rel=1e-5)
            assert mixed["loss"] > plain["loss"] + 0.1
    assert compared > 50


@pytest.mark.parametrize(
    "lora",
    [pytest.param(None, marks=pytest.mark.slow), {**LORA, "dropout": 0.2}],
    ids=["full", "lora"],
)
def test_fraction_zero_equals_a_run_without_mix_bit_for_bit(mixed_data, make_recipe, lora):
    if lora:
        mixed_data["lora"] = lora
    mixed_data["sft_mix"]["fraction"] = 0
    results = []
    for extra in (mixed_data.pop("sft_mix"), None):
        data = {**mixed_data, "output_dir": f"{mixed_data['output_dir']}-{bool(extra)}"}
        recipe = make_recipe({**data, "sft_mix": extra} if extra else data).recipe
        train(recipe, recipe.dpo)
        results.append((untimed(recipe.output_dir), weights_of(recipe.output_dir)))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name])


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_mixed_loss_does_not_depend_on_micro_batches(mixed_data, make_recipe, name):
    results = []
    for micro in (8, 1):
        mixed_data["training"] |= {"per_device_train_batch_size": micro, "max_steps": 5}
        mixed_data["training"]["per_device_eval_batch_size"] = 5
        data = {**mixed_data, "output_dir": f"{mixed_data['output_dir']}-{micro}"}
        recipe = make_recipe(data, *(["kto=null"] if micro == 1 else [])).recipe
        train(recipe, recipe.methods[name])
        rows = [r for r in metric_rows(recipe.output_dir) if "loss" in r]
        results.append([(r["loss"], r["sft_mix/loss"], r["sft_mix/fraction"]) for r in rows])
    for other in results[1:]:
        assert torch.tensor(_flat(other)).tolist() == pytest.approx(_flat(results[0]), rel=2e-5)


def _flat(values: list) -> list[float]:
    return [x for v in values for x in (v if isinstance(v, tuple) else (v,))]


@pytest.mark.parametrize(
    ("name", "lora"),
    [pytest.param("kto", None, marks=pytest.mark.slow), ("dpo", {**LORA, "dropout": 0.1})],
    ids=["full", "lora"],
)
def test_mixed_run_resumed_after_five_steps_equals_ten_steps(mixed_data, make_recipe, name, lora):
    if lora:
        mixed_data["lora"] = lora
    mixed_data["training"] |= {"max_steps": 10, "save_steps": 5}
    recipe = make_recipe(mixed_data).recipe
    method = recipe.methods[name]
    train(recipe, method)
    folder = Path(recipe.output_dir)
    one_batch, curve = weights_of(folder), metric_rows(folder)
    interrupt(folder, "checkpoint-10")
    train(recipe, method)
    keys = ("loss", "sft_mix/loss", "sft_mix/fraction", "preference_loss", "grad_norm")
    assert [[r.get(k) for k in keys] for r in metric_rows(folder)] == [
        [r.get(k) for k in keys] for r in curve
    ]
    again = weights_of(folder)
    for weight, value in one_batch.items():
        assert torch.equal(value, again[weight]), weight


def test_demonstration_conversations_train_the_last_turn(mixed_data, make_recipe, tmp_path):
    turns = [
        {"role": "user", "content": "say red"},
        {"role": "assistant", "content": "red red"},
        {"role": "user", "content": "say blue"},
        {"role": "assistant", "content": "blue"},
    ]
    path = write_jsonl(tmp_path / "chats.jsonl", [{"messages": turns}])
    mixed_data["sft_mix"]["data"] = {"path": str(path)}
    trainer = trainer_of(make_recipe(mixed_data).recipe, "dpo")[0]
    ((ids, start),) = trainer.stream.take([0])
    assert trainer.processing_class.decode(ids[start:]) == "blue</s>"
    assert "red red" in trainer.processing_class.decode(ids[:start])


def test_demonstrations_are_truncated_and_dropped_like_other_rows(
    mixed_data, make_recipe, tmp_path, capsys
):
    rows = [
        {"prompt": "say", "completion": f" {sentence(1, 200)}"},
        {"prompt": f"say {sentence(1, 200)}", "completion": " red"},
        {"prompt": "say", "completion": " "},
        {"prompt": "say", "completion": " red"},
    ]
    mixed_data["sft_mix"]["data"] = {"path": str(write_jsonl(tmp_path / "d.jsonl", rows))}
    recipe = make_recipe(mixed_data).recipe
    train(recipe, recipe.dpo)
    out = capsys.readouterr().out
    assert "sft_mix: 4 rows read, 2 kept" in out
    assert "sft_mix: cut: 1 of 4 rows (25 %): a completion is cut at max_length" in out
    assert "25.0% of the examples are demonstrations: 2.67" in out
    trainer = trainer_of(recipe, "dpo")[0]
    assert max(len(ids) for ids, _ in trainer.stream.take(range(2))) == 64


def test_demonstrations_accept_the_chosen_side_of_pairs(mixed_data, make_recipe, tmp_path):
    mixed_data["sft_mix"]["data"] = {"path": str(write_jsonl(tmp_path / "p.jsonl", pairs(5)))}
    trainer = trainer_of(make_recipe(mixed_data).recipe, "dpo")[0]
    assert {trainer.stream.index(i) for i in range(5)} == set(range(5))
    assert {trainer.stream.index(i) for i in range(5, 10)} == set(range(5))


def test_dry_run_reads_the_demonstrations(mixed_data, make_recipe, capsys):
    recipe = make_recipe(mixed_data).recipe
    assert dry_run(recipe, recipe.dpo).problems == []
    assert "sft_mix: 11 rows read, 11 kept" in capsys.readouterr().out
    mixed_data["sft_mix"]["data"] = {"path": "nowhere.jsonl"}
    recipe = make_recipe(mixed_data).recipe
    (problem,) = dry_run(recipe, recipe.dpo).problems
    assert "nowhere.jsonl" in str(problem)
    assert "sft_mix.data" in str(problem)


def test_mix_without_a_preference_method_is_rejected(mixed_data, make_recipe):
    for name in PREFERENCE:
        del mixed_data[name]
    with pytest.raises(RecipeError, match="no effect on sft"):
        make_recipe(mixed_data)


@pytest.mark.parametrize("fraction", [-0.1, 0.51, 1.5])
def test_mix_fraction_out_of_range_is_rejected(mixed_data, make_recipe, fraction):
    mixed_data["sft_mix"]["fraction"] = fraction
    with pytest.raises(RecipeError, match="out of range"):
        make_recipe(mixed_data)
