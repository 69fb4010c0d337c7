"""Before a run relies on it: does the fast forward say what trl's says, on this very model?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from prefcli.model.inference import eval_mode

_SEED = 0
_PROMPT, _ANSWER = 24, 8
_NATS = {"whole": 1e-4, "half": 0.01}
"""A token, on average: orders of addition differ."""
_SHARE = {"whole": 1e-3, "half": 0.1}
"""Or so much of what other tokens before the labels would change, which is how far off a wrong
layout is: in half precision large logits lie far apart."""


def disagreement(
    fast: Callable[..., Any],
    stock: Callable[..., Any],
    model: PreTrainedModel,
    *,
    max_length: int,
    precise: bool,
) -> str | None:
    """In words; None where they agree.

    Two answers to one prompt and one without a prompt are scored, longer than any window of the
    model that rows of `max_length` tokens would reach. precise: in float32 throughout.
    """
    batch = rows(model, max_length)
    scored = batch["labels"][:, 1:] != -100
    with torch.no_grad(), eval_mode(model):
        there = stock(**batch).log_probs.float()[scored]
        try:
            here = fast(**batch).log_probs.float()[scored]
        except Exception as error:  # whatever a model's own code makes of one packed row
            return f"it fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        elsewhere = stock(**_after_others(batch, model)).log_probs.float()[scored]
    off = (here - there).abs().mean().item()
    matters = (elsewhere - there).abs().mean().item()
    kind = "whole" if precise else "half"
    if off <= max(_NATS[kind], _SHARE[kind] * matters):
        return None
    return f"{off:.2g} nats a token off trl's own on a few made-up rows"


def _after_others(
    batch: dict[str, torch.Tensor], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    ids = batch["input_ids"]
    others = (ids + 1) % model.config.get_text_config().vocab_size
    return {**batch, "input_ids": torch.where(batch["labels"] == -100, others, ids)}


def rows(model: PreTrainedModel, max_length: int) -> dict[str, torch.Tensor]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    prompt = max(_PROMPT, window + 1) if window < max_length else _PROMPT
    prompt = max(1, min(prompt, max_length - _ANSWER))
    draw = torch.Generator().manual_seed(_SEED)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(0, config.vocab_size, (count,), generator=draw)

    shared = tokens(prompt)
    texts = [
        torch.cat([shared, tokens(_ANSWER)]),
        torch.cat([shared, tokens(_ANSWER // 2)]),
        tokens(_ANSWER),
    ]
    starts = [prompt, prompt, 1]
    length = max(map(len, texts))
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        labels[row, start : len(text)] = text[start:]
    device = model.device
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }
