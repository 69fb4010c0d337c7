"""Collators keep the stop tokens of a row trained, whatever the padding token."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from prefcli.data import tokenize
from prefcli.data.run_datasets import load_run_datasets
from prefcli.data.special_tokens import SpecialTokens
from prefcli.model import load_tokenizer
from prefcli.preflight.stop_token_check import ends_are_trained, ends_in
from tests.support.tiny_runs import labelled, pairs, trainer_of, write_jsonl
from tests.support.tiny_tokenizers import letters


def unchanged(tokenizer):
    pass


def make_pad_eos(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "kto", "orpo", "simpo"])
def test_collators_train_the_eos_with_any_padding_token(recipe_data, make_recipe, tmp_path, name):
    """Checked on the collator, and on the trainer's loss, which does not depend on padding."""
    rows = labelled(8) if name in ("kto", "sft") else pairs(8)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe_data["data"] = {"train": {"path": str(path)}, "max_length": 64}
    recipe = make_recipe(recipe_data).recipe
    losses = []
    for change in (unchanged, make_pad_eos):
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        method = recipe.methods[name]
        inputs = load_run_datasets(recipe, method, tokenizer)
        special = SpecialTokens.of(tokenizer, method, chat=False)
        ids = [
            special.around(tokenize(row, tokenizer))
            for row in inputs.train.for_trl().select(range(3)).to_list()
        ]
        assert len({len(i["prompt_ids"]) for i in ids}) > 1
        assert ends_are_trained(method, tokenizer, ids)
        trainer, _ = trainer_of(recipe, name, tokenizer)
        prepared = [trainer.train_dataset[i] for i in range(4)]
        batch = trainer.data_collator(prepared)
        assert (batch_ids(batch) == tokenizer.pad_token_id).any()
        trainer.model.eval()
        with torch.no_grad():
            losses.append(float(trainer.compute_loss(trainer.model, batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def batch_ids(batch):
    return next(batch[k] for k in ("input_ids", "chosen_input_ids") if k in batch)


def test_ends_in_masked_eos_is_detected():
    """The collator of transformers masks every padding token, and so every EOS."""
    sequences = [[5, 6, 1], [7, 1]]
    tokenizer = letters("<s>", "</s>", eos_token="</s>", pad_token="</s>")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert not ends_in(sequences, collator([{"input_ids": ids} for ids in sequences])["labels"])
    tokenizer.pad_token = "<s>"
    assert ends_in(sequences, collator([{"input_ids": ids} for ids in sequences])["labels"])
