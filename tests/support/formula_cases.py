"""Rows for the tests of formulas, and helpers of their trainers."""

from __future__ import annotations

import torch

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
COMPLETIONS = [{"prompt": row["prompt"], "completion": row["completion"]} for row in LABELLED]


def total(rows):
    return torch.stack([row.sum() for row in rows])


def mean(rows):
    return torch.stack([row.mean() for row in rows])


def gradients(model):
    return {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def move_weights(model, seed, size):
    """Move the trained weights away from their start: all of them, or the adapters only."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
