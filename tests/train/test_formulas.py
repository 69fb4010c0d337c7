"""Losses and metrics of the trainers we build, against the papers' formulas written out here.

The policy is moved away from the reference first, so that nothing cancels.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefcli.data import tokenise
from prefcli.model import load_model, load_tokenizer, machine
from prefcli.training.inputs import load_inputs
from prefcli.training.trainer import make_trainer

BETA = 0.3


def logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log p of each completion token, one row at a time, by plain softmax."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    scores = torch.log_softmax(logits, -1)
    return torch.stack(
        [scores[t - 1, ids[0, t]] for t in range(len(prompt), len(prompt) + len(completion))]
    )


def disturb(model) -> None:
    """Move what is trained: all weights, or the adapters alone."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def loss_of(trainer, rows) -> float:
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


@pytest.fixture
def built(recipe_data, make_recipe):
    """Build (trainer, reference, rows' ids) for a method; the policy is disturbed."""

    def build(name: str, section: dict, lora: bool = False):
        recipe_data[name] = section
        if lora:
            recipe_data["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0}
        recipe = make_recipe(recipe_data).recipe
        tokenizer = load_tokenizer(recipe.model)
        inputs = load_inputs(recipe, recipe.methods[name], tokenizer)
        policy = load_model(recipe.model, torch.float32, recipe.seed)
        reference = load_model(recipe.model, torch.float32, recipe.seed).eval()
        trainer, _ = make_trainer(
            recipe, recipe.methods[name], machine(), policy, tokenizer, inputs
        )
        disturb(trainer.model)
        trainer.model.eval()
        ids = [tokenise(row, tokenizer) for row in inputs.train.rows.select(range(6))]
        return trainer, reference, ids

    return build


def ratios(trainer, reference, ids):
    """(chosen, rejected) log-ratios, and token counts."""
    result = []
    for row in ids:
        pair = []
        for side in ("chosen_ids", "rejected_ids"):
            policy = logps(trainer.model, row["prompt_ids"], row[side]).sum()
            base = logps(reference, row["prompt_ids"], row[side]).sum()
            pair.append((policy - base, len(row[side])))
        result.append(pair)
    return result


# Under LoRA the reference must be the model without its adapter, so the same formulas hold.
both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@both
def test_dpo_eq_7(built, lora):
    trainer, reference, ids = built("dpo", {"beta": BETA}, lora)
    expected = torch.stack(
        [-logsigmoid(BETA * (c - r)) for (c, _), (r, _) in ratios(trainer, reference, ids)]
    ).mean()
    rows = [trainer.train_dataset[i] for i in range(6)]
    assert loss_of(trainer, rows) == pytest.approx(float(expected), rel=1e-5)


def test_hinge(built):
    trainer, reference, ids = built("dpo", {"beta": BETA, "loss_type": "hinge"})
    expected = torch.stack(
        [torch.relu(1 - BETA * (c - r)) for (c, _), (r, _) in ratios(trainer, reference, ids)]
    ).mean()
    rows = [trainer.train_dataset[i] for i in range(6)]
    assert loss_of(trainer, rows) == pytest.approx(float(expected), rel=1e-5)


@both
def test_ipo_eq_17_per_token(built, lora):
    trainer, reference, ids = built("ipo", {"beta": BETA}, lora)
    expected = torch.stack(
        [
            (c / n - r / m - 1 / (2 * BETA)) ** 2
            for (c, n), (r, m) in ratios(trainer, reference, ids)
        ]
    ).mean()
    rows = [trainer.train_dataset[i] for i in range(6)]
    assert loss_of(trainer, rows) == pytest.approx(float(expected), rel=1e-5)


@both
def test_kto_eq_7(built, lora):
    section = {"beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer, reference, _ = built("kto", section, lora)
    rows = [trainer.train_dataset[i] for i in range(4)]  # one device batch: the KL term's scope

    def ratio(prompt, completion):
        return (
            logps(trainer.model, prompt, completion) - logps(reference, prompt, completion)
        ).sum()

    kl = torch.stack(
        [ratio(row["prompt_ids"], rows[i - 1]["completion_ids"]) for i, row in enumerate(rows)]
    )
    z0 = kl.mean().clamp(min=0)
    losses = []
    for row in rows:
        reward = ratio(row["prompt_ids"], row["completion_ids"])
        if row["label"]:
            losses.append(1.5 * (1 - torch.sigmoid(BETA * (reward - z0))))
        else:
            losses.append(0.5 * (1 - torch.sigmoid(BETA * (z0 - reward))))
    expected = torch.stack(losses).mean()
    assert loss_of(trainer, rows) == pytest.approx(float(expected), rel=1e-5)


def test_orpo_eq_6(built):
    trainer, _, ids = built("orpo", {"lambda": BETA})
    bos = trainer.processing_class.bos_token_id
    nll, tokens, ratios_ = 0.0, 0, []
    for row in ids:
        prompt = [bos, *row["prompt_ids"]]
        # trl's SFT term covers the prompt too, as the authors' code does.
        whole = logps(trainer.model, prompt[:1], [*prompt[1:], *row["chosen_ids"]])
        nll, tokens = nll - float(whole.sum()), tokens + len(whole)
        chosen = logps(trainer.model, prompt, row["chosen_ids"]).mean()
        rejected = logps(trainer.model, prompt, row["rejected_ids"]).mean()
        odds = [p - torch.log1p(-torch.exp(p)) for p in (chosen, rejected)]
        ratios_.append(float(logsigmoid(odds[0] - odds[1])))
    expected = nll / tokens - BETA * sum(ratios_) / len(ratios_)
    rows = [trainer.train_dataset[i] for i in range(6)]
    assert loss_of(trainer, rows) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sft_is_the_mean_over_completion_tokens(recipe_data, make_recipe, packing):
    """Packed rows share a sequence, and must not see each other without flash attention either."""
    recipe_data["sft"] = {"packing": packing}
    recipe_data["data"].pop("eval")
    recipe = make_recipe(recipe_data).recipe
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_inputs(recipe, recipe.sft, tokenizer)
    policy = load_model(recipe.model, torch.float32, recipe.seed)
    trainer, _ = make_trainer(recipe, recipe.sft, machine(), policy, tokenizer, inputs)
    trainer.model.eval()
    ids = [tokenise(row, tokenizer) for row in inputs.train.rows]
    scores = [logps(trainer.model, row["prompt_ids"], row["completion_ids"]) for row in ids]
    expected = -float(torch.cat(scores).mean())
    assert (len(trainer.train_dataset) < len(ids)) == packing
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    assert loss_of(trainer, rows) == pytest.approx(expected, rel=1e-5)
