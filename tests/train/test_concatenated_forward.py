"""ORPO, SimPO and CPO on the packed forward: the same scores as by trl's own forward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from prefcli.errors import RecipeError
from prefcli.training.run import train
from tests.support.formula_cases import LORA, PAIRS, gradients, move_weights
from tests.support.oracle import deviation
from tests.support.tiny_runs import UNTIMED, metric_rows, pairs, trainer_of, write_jsonl

STOCK = {"orpo": ORPOTrainer, "simpo": CPOTrainer, "cpo": CPOTrainer}
CASES = {
    "orpo full": ("orpo", {"lambda": 0.5}, {}),
    "orpo lora": ("orpo", {}, {"lora": LORA}),
    "simpo full": ("simpo", {}, {}),
    "simpo lora cpo_alpha": ("simpo", {"cpo_alpha": 0.7}, {"lora": LORA}),
    "cpo full": ("cpo", {}, {}),
    "cpo lora hinge": ("cpo", {"loss_type": "hinge", "cpo_alpha": 0.0}, {"lora": LORA}),
    "cpo ipo": ("cpo", {"loss_type": "ipo"}, {}),
    "cpo alphapo": ("cpo", {"loss_type": "alphapo"}, {}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def scored(request, recipe_data, make_recipe, tmp_path):
    """Return trl's trainer class, a trainer whose policy has moved, and a batch of all rows."""
    name, section, lora = CASES[request.param]
    rows = write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    data = {**recipe_data, name: section, "performance": {"shared_prefix": "on"}, **lora}
    data["data"] = {**recipe_data["data"], "train": {"path": str(rows)}}
    data["training"] = {**recipe_data["training"], "global_batch_size": 4}
    trainer, _ = trainer_of(make_recipe(data).recipe, name)
    move_weights(trainer.model, 1, 0.1)
    batch = trainer.data_collator(list(trainer.train_dataset))
    return STOCK[name], trainer, batch


def loss_of(trainer, batch, *, reason=None):
    """Return (loss, gradients, metrics). reason: why trl's own forward scores."""
    trainer.context.packed_forward.reason = reason
    trainer.model.zero_grad()
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return loss.detach(), gradients(trainer.model), metrics


def test_packed_scores_match_trls_loss_gradient_and_metrics(scored):
    stock, trainer, batch = scored
    packed = trainer.context.packed_forward
    fast = loss_of(trainer, batch)
    assert packed.counts.as_dict()["fast_calls"] == 1
    slow = loss_of(trainer, batch, reason="a test")
    assert packed.counts.as_dict()["fast_calls"] == 1
    assert deviation(fast[0], slow[0]) < 1e-6
    assert deviation(fast[1], slow[1]) < 1e-5
    assert fast[2] == pytest.approx(slow[2], rel=1e-5, abs=1e-6)
    # Sums of log-probabilities agree to float32, means per token to 1e-5.
    for packed_scores, expected in zip(*both(stock, trainer, batch), strict=True):
        torch.testing.assert_close(packed_scores, expected, rtol=1e-6, atol=1e-5)


def both(stock, trainer, batch):
    """Return log-probabilities and NLL, by the trainer and by trl's own method."""
    trainer.context.packed_forward.reason = None
    packed_scores = trainer.concatenated_forward(trainer.model, batch)
    expected = stock.concatenated_forward(trainer, trainer.model, batch)
    return (*packed_scores[:2], packed_scores[4]), (*expected[:2], expected[4])


def test_packed_logits_without_padding_match_trls(scored):
    stock, trainer, batch = scored
    # One pair, both sides cut to the shorter.
    length = min(batch[f"{side}_attention_mask"][0].sum() for side in ("chosen", "rejected"))
    pair = {
        name: value[:1, :length] if "prompt" not in name else value[:1]
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    counts = trainer.context.packed_forward.counts
    packed_scores = trainer.concatenated_forward(trainer.model, pair)
    prompt = int((pair["chosen_labels"][0] == -100).sum())
    assert counts.packed == 2 * int(length) - prompt
    expected = stock.concatenated_forward(trainer, trainer.model, pair)
    for side in (2, 3):
        torch.testing.assert_close(
            packed_scores[side].mean(), expected[side].mean(), rtol=1e-5, atol=1e-6
        )


# 2 steps of 2 batches with demonstrations, and two evaluations of 10 rows in 3 batches.
# dpo calls its reference as well, except for demonstrations, and both for 8 rows before step 1.
CALLS = {
    "orpo": 2 * 2 * 2 + 2 * 3,
    "simpo": 2 * 2 * 2 + 2 * 3,
    "cpo": 2 * 2 * 2 + 2 * 3,
    "dpo": 2 * 2 * 3 + 2 * 2 * 3 + 2 * 8,
}


@pytest.mark.parametrize("name", CALLS)
def test_run_with_sft_mix_counts_packed_calls_and_logs_the_same(recipe_data, make_recipe, name):
    demonstrations = write_jsonl(Path(recipe_data["output_dir"]).parent / "sft.jsonl", pairs(12))
    data = {
        **recipe_data,
        "sft_mix": {"fraction": 0.5, "data": {"path": str(demonstrations)}},
    }
    rows = {}
    for how in ("on", "off"):
        data["output_dir"] = f"{recipe_data['output_dir']}-{how}"
        recipe = make_recipe(data, f"performance.shared_prefix={how}").recipe
        train(recipe, recipe.methods[name])
        rows[how] = [
            {k: v for k, v in row.items() if isinstance(v, float) and not k.endswith(UNTIMED)}
            for row in metric_rows(recipe.output_dir)
        ]
        run = json.loads((Path(recipe.output_dir) / "run.json").read_text("utf-8"))
        if how == "on":
            assert run["speed"]["fast_calls"] == CALLS[name]
            assert run["speed"]["stock_calls"] == 0
            assert run["speed"]["shared_prefix"] == "in use"
        else:
            assert run["speed"]["fast_calls"] == 0
    assert {"sft_mix/loss", "logits/chosen", "eval_logits/rejected"} <= set().union(*rows["on"])
    for fast, slow in zip(rows["on"], rows["off"], strict=True):
        assert fast == pytest.approx(slow, rel=1e-4, abs=1e-5)


def test_unsupported_attention_falls_back_to_trls_forward(recipe_data, make_recipe):
    recipe_data["model"]["attn_implementation"] = "eager"
    trainer, _ = trainer_of(make_recipe(recipe_data).recipe, "orpo")
    assert "eager" in trainer.context.packed_forward.reason
    batch = trainer.data_collator(list(trainer.train_dataset)[:4])
    packed_scores = trainer.concatenated_forward(trainer.model, batch)
    expected = ORPOTrainer.concatenated_forward(trainer, trainer.model, batch)
    for at in (0, 1, 4):
        assert torch.equal(packed_scores[at], expected[at])
    assert trainer.context.packed_forward.counts.as_dict()["fast_calls"] == 0
    with pytest.raises(RecipeError, match="eager"):
        trainer_of(make_recipe(recipe_data, "performance.shared_prefix=on").recipe, "orpo")


def test_orpo_at_certainty_has_a_finite_loss_and_gradient(recipe_data, make_recipe):
    """In trl the gradient is NaN where exp(log p) is 1 in float32."""
    trainer, _ = trainer_of(make_recipe(recipe_data).recipe, "orpo")
    chosen = torch.tensor([0.0, -1e-9, -3e-8, -1e-6, -0.5], requires_grad=True)
    rejected = torch.full_like(chosen, -1.0)
    losses, *_ = trainer.odds_ratio_loss(chosen, rejected)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()
    usual = chosen.detach()[3:].requires_grad_()
    expected, *_ = ORPOTrainer.odds_ratio_loss(trainer, usual, rejected[3:])
    expected.sum().backward()
    assert losses[3:].equal(expected)
    assert chosen.grad[3:].equal(usual.grad)
