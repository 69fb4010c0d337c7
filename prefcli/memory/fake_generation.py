"""The sampling of a step on fake tensors: its first pass, and the pass of its last token."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from prefcli.model.inference import eval_mode
from prefcli.model.peft_wrapper import base_of


@torch.no_grad()
def run_generation(trainer: Any, rows: int, prompt: int, completion: int) -> None:
    """Run what needs the most memory of a generation.

    rows: completions that are sampled together. prompt, completion: tokens of each.
    """
    model = base_of(trainer.model)
    last = {"logits_to_keep": 1} if _keeps_last(model) else {}
    ids = torch.zeros(rows, prompt, dtype=torch.long)
    with eval_mode(model), trainer.accelerator.autocast():
        mask = torch.ones_like(ids)
        cache = model(input_ids=ids, attention_mask=mask, use_cache=True, **last).past_key_values
        for number, layer in enumerate(cache.layers):
            keys = getattr(layer, "keys", None)  # None in a layer without attention
            if keys is not None:
                earlier = keys.new_zeros(*keys.shape[:2], completion - 1, keys.shape[3])
                cache.update(earlier, earlier, number)
        mask = torch.ones(rows, prompt + completion, dtype=torch.long)
        scores = model(
            input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache, use_cache=True, **last
        ).logits[:, -1]
    # The sampler has copies of the scores, also of the token before, and float64 probabilities.
    copies = [torch.empty_like(scores) for _ in range(3)]
    probabilities = scores.double().softmax(-1)
    probabilities.cumsum(-1)
    del copies


def _keeps_last(model: torch.nn.Module) -> bool:
    """Return whether the model computes logits of the last token alone, as `generate` asks."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
