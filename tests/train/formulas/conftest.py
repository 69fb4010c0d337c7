"""Trainers whose policy has left the reference, with the oracle of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prefcli.methods import METHODS
from tests.support.oracle import Oracle, deviation
from tests.support.tiny_runs import ANYTHING, trainer_of, write_jsonl

# Chosen and rejected differ in length, both ways, and so do the rows.
PAIRS = [
    {"prompt": "say red blue", "chosen": " big small kind thanks", "rejected": " no"},
    {"prompt": "say yes", "chosen": " dog", "rejected": " cat sun rude green no please"},
    {"prompt": "say please dog sun cat", "chosen": " kind yes", "rejected": " rude big no"},
    {"prompt": "say", "chosen": " sun sun cat please", "rejected": " red green"},
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(PAIRS, ("chosen", "rejected", "chosen", "chosen"), strict=True)
]
LORA = {"rank": 4, "alpha": 6, "dropout": 0.0}


class Case:
    """A trainer that make_trainer built, and what its loss and gradient should be."""

    def __init__(self, trainer, inputs, recipe):
        self.trainer = trainer
        self.rows = inputs.train.rows.to_list()
        self.max_length = recipe.data.max_length
        lora = recipe.lora
        self.oracle = Oracle(
            recipe.model.name_or_path,
            trainer.model,
            lora_scale=lora.alpha / lora.rank if lora else None,
        )

    def batch(self, rows=None):
        """Rows of trl's own data set, collated by its collator; all of them if none are named."""
        data = self.trainer.train_dataset
        return self.trainer.data_collator([data[i] for i in rows or range(len(data))])

    def theirs(self, batch=None):
        """(loss, gradients) of trl's trainer."""
        model = self.trainer.model.train()
        model.zero_grad()
        loss = self.trainer.compute_loss(model, self.trainer._prepare_inputs(batch or self.batch()))
        loss.backward()
        return loss.detach(), gradients(model)

    def agrees(self, expected, batch=None):
        theirs, their_gradients = self.theirs(batch)
        assert deviation(theirs, expected) < 1e-5
        assert deviation(their_gradients, self.oracle.gradients(expected)) < 1e-5

    def pairs(self, *, bos=False, max_length=None):
        """Token log-probabilities of the rows, and what the pairwise losses are made of."""
        found = SimpleNamespace(chosen=[], rejected=[], chosen_reference=[], rejected_reference=[])
        for row in self.rows:
            for side in ("chosen", "rejected"):
                ids = self.oracle.ids(
                    row["prompt"], row[side], max_length=max_length or self.max_length, bos=bos
                )
                getattr(found, side).append(self.oracle.policy(*ids))
                getattr(found, f"{side}_reference").append(self.oracle.reference(*ids))
        found.lengths = [
            (len(c), len(r)) for c, r in zip(found.chosen, found.rejected, strict=True)
        ]
        found.w = total(found.chosen) - total(found.chosen_reference)
        found.l = total(found.rejected) - total(found.rejected_reference)
        return found


def total(rows):
    return torch.stack([row.sum() for row in rows])


def mean(rows):
    return torch.stack([row.mean() for row in rows])


def gradients(model):
    return {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def disturb(model, seed, size):
    """Move what is trained away from where it starts: all weights, or the adapters alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def build(recipe_data, make_recipe, tmp_path):
    """Build a Case: the one place that knows how a trainer is made."""

    def build(
        name, section, rows=PAIRS, *, lora=False, max_length=64, seed=1, size=0.1, **training
    ):
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        for other in METHODS:
            recipe_data.pop(other, None)
        recipe_data[name] = section
        recipe_data["data"] = {
            "checks": ANYTHING,
            "train": {"path": str(data)},
            "max_length": max_length,
        }
        recipe_data["model"]["dtype"] = "float32"
        recipe_data["training"] |= {
            "global_batch_size": len(rows),
            "per_device_train_batch_size": len(rows),
            **training,
        }
        if lora:
            recipe_data["lora"] = LORA
        recipe = make_recipe(recipe_data).recipe
        trainer, inputs = trainer_of(recipe, name)
        disturb(trainer.model, seed, size)
        return Case(trainer, inputs, recipe)

    return build
