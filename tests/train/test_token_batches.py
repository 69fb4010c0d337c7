"""Token budget: the same rows and numbers in each step, in fewer and more even micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from prefcli.data.run_datasets import load_run_datasets
from prefcli.model import load_tokenizer
from prefcli.training.run import train
from prefcli.training.token_batches import (
    TokenBatchSampler,
    TokenBudget,
    choose_token_budget,
    deal_rows,
    micro_batch_weights,
)
from scripts.bench.token_batches import slowest_over_mean
from tests.support.tiny_runs import (
    UNTIMED,
    interrupt,
    metric_rows,
    sentence,
    trainer_of,
    write_jsonl,
)

PARTITION_DEPENDENT = ("logits/chosen", "logits/rejected", "mean_token_accuracy", "entropy")
"""Metrics that trl defines as means over micro-batches."""


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30),
    processes=st.integers(1, 5),
    budget=st.integers(1, 2000),
    least=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_deal_rows_keeps_every_row_and_the_budget(lengths, processes, budget, least):
    lengths = np.array(lengths * processes)
    rows = list(range(len(lengths)))
    dealt = deal_rows(rows, lengths, budget, processes, least)
    assert sorted(row for batch in dealt for own in batch for row in own) == rows
    assert len(dealt) >= min(least, len(rows) // processes)
    for batch in dealt:
        assert len({len(own) for own in batch}) == 1  # trl gathers values of rows
        assert all(own for own in batch)
    longest = max(sum(lengths[own]) for batch in dealt for own in batch)
    assert longest <= max(budget, lengths.max())


def test_deal_rows_needs_fewer_micro_batches_than_rows_do():
    lengths = np.array([10, 10, 10, 10, 40, 10, 10, 10])
    dealt = deal_rows(range(8), lengths, budget=80)
    assert [sum(lengths[own]) for (own,) in dealt] == [60, 50]  # 2 instead of 4 pairs of rows


@pytest.mark.parametrize(("micro_batch", "accumulation", "spread"), [(4, 1, 0.3), (4, 4, 0.6)])
def test_deal_rows_gives_eight_processes_about_as_many_tokens(micro_batch, accumulation, spread):
    """Lognormal lengths, cut at 2048 tokens."""
    draw = np.random.default_rng(0).lognormal(6, spread, 8 * 4 * 40)
    lengths = np.clip(draw, 20, 2048).astype(int)
    by_rows, by_tokens = slowest_over_mean(
        lengths, processes=8, micro_batch=micro_batch, accumulation=accumulation
    )
    assert by_tokens <= 1.06
    assert (by_tokens - 1) * 4 < by_rows - 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_token_batch_sampler_has_the_rows_of_row_batches_in_each_step(processes):
    for count in range(1, 40):
        lengths = np.arange(count) % 7 + 1
        budget = TokenBudget(9, accumulation=3, why="")
        samplers = [
            TokenBatchSampler(
                SequentialSampler(range(count)),
                lengths,
                budget,
                micro_batch=2,
                process=process,
                processes=processes,
            )
            for process in range(processes)
        ]
        steps = list(zip(*samplers, strict=True))
        assert len(steps) == len(samplers[0])
        seen = [sorted(row for own in step for batch in own for row in batch) for step in steps]
        every = 2 * 3 * processes
        expected = [list(range(count))[at : at + every] for at in range(0, count, every)]
        # As accelerate does, the last step repeats rows of the beginning, so that batches are full.
        missing = -count % (2 * processes) if processes > 1 else 0
        expected[-1] += [row % min(count, 2 * processes) for row in range(missing)]
        assert seen == list(map(sorted, expected))
        for step in steps:
            assert len({tuple(map(len, own)) for own in step}) == 1


def test_micro_batch_weights_are_rows_but_for_a_smaller_last_batch():
    assert micro_batch_weights([3, 1], micro_batch=2) == [3, 1]
    assert micro_batch_weights([2, 2, 1], micro_batch=2) == [2, 2, 2]
    assert micro_batch_weights([1], micro_batch=2) == [1]


@pytest.fixture
def uneven(recipe_data, tmp_path) -> dict:
    """21 pairs of 5 to 27 tokens: steps of 8, 8 and 5 in an epoch, two rows per micro-batch."""
    rows = [
        {
            "prompt": f"say {sentence(i, 1 + i % 3)}",
            "chosen": f" {sentence(i + 1, 1 + (i * 5) % 11)} thanks",
            "rejected": f" {sentence(i + 2, 1 + (i * 3) % 7)} no",
        }
        for i in range(21)
    ]
    mixed = [{"text": sentence(i, 6)} for i in range(9)]
    recipe_data |= {
        "kto": {"loss_type": "apo_zero_unpaired"},
        "mixed": {"fraction": 0.3, "data": {"path": str(write_jsonl(tmp_path / "m.jsonl", mixed))}},
    }
    recipe_data["data"]["train"] = {"path": str(write_jsonl(tmp_path / "uneven.jsonl", rows))}
    recipe_data["training"] |= {"per_device_train_batch_size": 2, "max_steps": 3}
    del recipe_data["data"]["eval"]
    return recipe_data


CASES = {
    "dpo": {"dpo": {"loss_type": ["sigmoid", "sft"]}, "reference": {"precompute": True}},
    "dpo mixed": {"mixed": True, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}},
    "sft": {},
    "kto": {},
    "orpo": {},
    "reward": {},
}


@pytest.mark.parametrize("case", CASES)
def test_token_batches_have_the_numbers_of_row_batches(uneven, make_recipe, case):
    """Compare losses, gradient norms, metrics and weights over an epoch of 3 uneven steps."""
    mixed, changes, name = uneven.pop("mixed"), dict(CASES[case]), case.split()[0]
    if changes.pop("mixed", False):
        changes["sft_mix"] = mixed
    logs, weights, passes = {}, {}, {}
    for tokens in ("off", 1000):
        setting = f"performance.tokens_per_batch={tokens}"
        trainer, _ = trainer_of(make_recipe(uneven | changes, setting).recipe, name)
        trainer.args.save_strategy = "no"
        trainer.train()
        logs[tokens] = [row for row in trainer.state.log_history if "loss" in row]
        weights[tokens] = dict(trainer.model.named_parameters())
        passes[tokens] = trainer.context.packed_forward.counts.fast
        dtypes = {type(value) for row in logs[tokens] for value in row.values()}
        assert dtypes <= {int, float}
    if "mixed" not in case:  # demonstrations keep the number of micro-batches
        assert passes[1000] < passes["off"]
    assert len(logs["off"]) == 3
    for row, other in zip(logs["off"], logs[1000], strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {*PARTITION_DEPENDENT, *(k for k in row if k.endswith(UNTIMED))}:
            assert other[key] == pytest.approx(row[key], rel=1e-5, abs=2e-6), key
    for key, value in weights["off"].items():
        torch.testing.assert_close(weights[1000][key], value, rtol=1e-4, atol=1e-6)


def test_token_batches_resumed_within_an_epoch_equal_one_run(uneven, make_recipe):
    """Stop after step 2 of 3 in an epoch, with dropout, and train on into the next epoch."""
    uneven["lora"] = {"rank": 2, "alpha": 4, "dropout": 0.2}
    uneven["sft_mix"] = uneven.pop("mixed")
    uneven["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(uneven, "performance.tokens_per_batch=60").recipe
    train(recipe, recipe.dpo)
    expected = metric_rows(recipe.output_dir)
    interrupt(recipe.output_dir, "checkpoint-4")
    train(recipe, recipe.dpo)
    # trl counts num_tokens from the start of the process.
    left_out = (*UNTIMED, "num_tokens")
    for row, other in zip(expected, metric_rows(recipe.output_dir), strict=True):
        assert {k: v for k, v in row.items() if not k.endswith(left_out)} == {
            k: v for k, v in other.items() if not k.endswith(left_out)
        }


@pytest.mark.parametrize(
    ("changes", "kind", "world", "tokens", "why"),
    [
        ([], "cpu", 1, None, "on several GPUs only"),
        ([], "cuda", 2, "largest", "as the largest 2 rows"),
        ([], "cuda", 1, None, "on several GPUs only"),
        (["performance.tokens_per_batch=off"], "cuda", 2, None, "is off"),
        (["performance.tokens_per_batch=30"], "cpu", 1, 30, "tokens_per_batch says"),
        (["performance.tokens_per_batch=9999"], "cpu", 1, "longest", "2 times the longest row"),
        (["dpo.loss_type=aot", "performance.tokens_per_batch=30"], "cuda", 2, None, "share"),
        (["performance.shared_prefix=off"], "cuda", 2, None, "padded rows"),
    ],
)
def test_choose_token_budget_explains_its_choice(
    uneven, make_recipe, changes, kind, world, tokens, why
):
    uneven.pop("mixed")
    recipe = make_recipe(uneven, *changes).recipe
    datasets = load_run_datasets(recipe, recipe.dpo, load_tokenizer(recipe.model))
    lengths = datasets.train.lengths
    budget = choose_token_budget(
        recipe,
        recipe.dpo,
        datasets,
        world=world,
        accumulation=recipe.training.global_batch_size // (2 * world),
        packed=lambda: recipe.performance.shared_prefix != "off",
        kind=kind,
    )
    known = {"largest": lengths.packed(2, 1), "longest": 2 * lengths.longest_packed}
    assert budget.tokens == known.get(tokens, tokens)
    (line,) = budget.lines()
    assert why in line


def test_methods_whose_loss_mixes_rows_say_so(uneven, make_recipe):
    uneven.pop("mixed")
    recipe = make_recipe(uneven).recipe
    assert all(method.rows_are_independent for method in recipe.methods.values())
    changed = make_recipe(uneven, "kto.loss_type=kto", "dpo.loss_type=[sigmoid,aot_unpaired]")
    mixing = {n for n, m in changed.recipe.methods.items() if not m.rows_are_independent}
    assert mixing == {"kto", "dpo"}
