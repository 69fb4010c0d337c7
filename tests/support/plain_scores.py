"""Log-probabilities by a plain softmax of a plain forward pass, for comparisons."""

from __future__ import annotations

import torch


def log_softmax_sum(model, tokenizer, prompt: str, completion: str) -> tuple[float, int]:
    """Return (log-probability, tokens) of a completion with its end token."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    total = sum(float(torch.log_softmax(logits[t - 1], -1)[ids[t]]) for t in range(start, len(ids)))
    return total, len(ids) - start
