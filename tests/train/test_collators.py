"""Collators keep the stop tokens of a row trained, whatever the padding token."""

from __future__ import annotations

import pytest
import torch

from prefcli.model import load_tokenizer
from tests.support.tiny_runs import labelled, pairs, trainer_of, write_jsonl


def unchanged(tokenizer):
    pass


def make_pad_eos(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
def test_collators_train_the_eos_with_any_padding_token(recipe_data, make_recipe, tmp_path, name):
    """The loss is the same when the padding token is the EOS: collators mask by position."""
    rows = labelled(8) if name in ("kto", "sft") else pairs(8)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe_data["data"] = {"train": {"path": str(path)}, "max_length": 64}
    recipe = make_recipe(recipe_data).recipe
    losses = []
    for change in (unchanged, make_pad_eos):
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        trainer, _ = trainer_of(recipe, name, tokenizer)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        assert (batch_ids(batch) == tokenizer.pad_token_id).any()
        trainer.model.eval()
        with torch.no_grad():
            losses.append(float(trainer.compute_loss(trainer.model, batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def batch_ids(batch):
    return next(batch[k] for k in ("input_ids", "chosen_input_ids") if k in batch)
