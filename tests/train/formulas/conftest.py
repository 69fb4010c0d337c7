"""Trainers whose policy differs from the reference, with the exact values of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefcli.data.digests import json_digest
from prefcli.methods import METHODS
from tests.support.formula_cases import LORA, PAIRS, gradients, move_weights, total
from tests.support.judge import RLOO
from tests.support.oracle import Oracle, deviation
from tests.support.tiny_runs import ANYTHING, trainer_of, write_jsonl


class Case:
    """A trainer that make_trainer built, and the expected loss and gradient."""

    def __init__(self, trainer, inputs, recipe):
        self.trainer = trainer
        self.rows = inputs.train.rows.to_list()
        self.max_length = recipe.data.max_length
        self._recipe = recipe
        self.oracle = self._oracle()

    def _oracle(self):
        lora = self._recipe.lora
        return Oracle(
            self._recipe.model.name_or_path,
            self.trainer.model,
            lora_scale=lora.alpha / lora.rank if lora else None,
        )

    def move(self, seed, size):
        """Move the policy further."""
        move_weights(self.trainer.model, seed, size)
        self.oracle = self._oracle()

    def batch(self, rows=None):
        """Collate rows of trl's dataset by its collator; all of them by default."""
        data = self.trainer.train_dataset
        return self.trainer.data_collator([data[i] for i in rows or range(len(data))])

    def trl_step(self, batch=None):
        """Return (loss, gradients) of trl's trainer."""
        model = self.trainer.model.train()
        model.zero_grad()
        loss = self.trainer.compute_loss(model, self.trainer._prepare_inputs(batch or self.batch()))
        loss.backward()
        return loss.detach(), gradients(model)

    def agrees(self, expected, batch=None):
        loss, loss_gradients = self.trl_step(batch)
        assert deviation(loss, expected) < 1e-5
        assert deviation(loss_gradients, self.oracle.gradients(expected)) < 1e-5

    def pairs(self, *, bos=False, max_length=None):
        """Return token log-probabilities of the rows, and the sums that pairwise losses use."""
        scores = SimpleNamespace(chosen=[], rejected=[], chosen_reference=[], rejected_reference=[])
        for row in self.rows:
            for side in ("chosen", "rejected"):
                ids = self.oracle.ids(
                    row["prompt"], row[side], max_length=max_length or self.max_length, bos=bos
                )
                getattr(scores, side).append(self.oracle.policy(*ids))
                getattr(scores, f"{side}_reference").append(self.oracle.reference(*ids))
        scores.lengths = [
            (len(c), len(r)) for c, r in zip(scores.chosen, scores.rejected, strict=True)
        ]
        scores.w = total(scores.chosen) - total(scores.chosen_reference)
        scores.l = total(scores.rejected) - total(scores.rejected_reference)
        return scores


@pytest.fixture(scope="session")
def row_files(tmp_path_factory):
    """A folder of row files named by their content, so that equal rows are prepared only once."""
    return tmp_path_factory.mktemp("rows")


@pytest.fixture
def build(recipe_data, make_recipe, row_files):
    """Build a Case, with the policy moved away from the reference."""

    def build(
        name,
        section,
        rows=PAIRS,
        *,
        lora=False,
        max_length=64,
        seed=1,
        size=0.1,
        **training,
    ):
        data = row_files / f"{json_digest(rows)}.jsonl"
        if not data.exists():
            write_jsonl(data, rows)
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
        if METHODS[name].needs_judge:
            recipe_data["judge"] = RLOO["judge"]
        recipe = make_recipe(recipe_data).recipe
        trainer, inputs = trainer_of(recipe, name)
        move_weights(trainer.model, seed, size)
        return Case(trainer, inputs, recipe)

    return build
