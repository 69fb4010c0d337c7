"""Tokenizer and rows of a simulated step: they have the right length and no meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefcli.data import Split
from prefcli.data.lengths import Lengths
from prefcli.methods import Method


def one_token_a_word() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word; a model without values needs no real ids."""
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<pad>": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="a"
    )


def rows_of(method: Method, count: int, length: int) -> list[dict[str, Any]]:
    """Make rows of `length` tokens with the end token; one side of each pair is one shorter."""
    if method.rows == "prompt":
        return [{"prompt": _text(max(length - method.sampled_tokens, 1))}] * count
    longer, shorter = _text(length - 2), _text(length - 3)
    if method.rows == "pair":
        return [{"prompt": "a", "chosen": " " + longer, "rejected": " " + shorter}] * count
    rows = [
        {"prompt": "a", "completion": f" {longer if i % 2 else shorter}", "label": bool(i % 2)}
        for i in range(count)
    ]
    if method.rows == "demonstration":
        return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    return rows


def demonstrations(most: int, length: int) -> Split:
    """Make more demonstrations than a step can mix in."""
    rows = [{"text": _text(length), "_file": "", "_row": 1}] * (most + 1)
    return Split(
        name="sft_mix",
        rows=Dataset.from_list(rows),
        read=len(rows),
        available=len(rows),
        dropped={},
        findings=[],
        notes=[],
        tokens=length * len(rows),
        lengths=Lengths({}, length, 0),
        prompts=np.zeros(0, np.int64),
    )


def _text(tokens: int) -> str:
    return " ".join(["a"] * tokens)
