"""Rows of a batch added up, side by side, and the figures that come of the sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Sums = dict[str, torch.Tensor]
"""Scalars on the device: nothing is waited for until the figures are read."""

_Sides = Sequence[torch.Tensor]

SIDES = ("chosen", "rejected")
_LENGTHS = ("longer", "shorter")


def of_pairs(logps: _Sides, tokens: _Sides, rewards: _Sides) -> Sums:
    """Of chosen and rejected, each a value a row; logps are sums over tokens, in nats."""
    sums: Sums = {}
    for name, logp, count, reward in zip(SIDES, logps, tokens, rewards, strict=True):
        sums |= _side(name, torch.ones_like(logp), logp, count, reward)
    margin = rewards[0] - rewards[1]
    wins = (margin > 0).float()
    sums["wins"] = wins.sum()
    for name, of in zip(_LENGTHS, (tokens[0] > tokens[1], tokens[0] < tokens[1]), strict=True):
        sums |= {
            f"{name}_rows": of.sum(),
            f"{name}_margin": (margin * of).sum(),
            f"{name}_wins": (wins * of).sum(),
        }
    return sums


def of_labelled(
    logps: torch.Tensor, tokens: torch.Tensor, rewards: torch.Tensor, labels: torch.Tensor
) -> Sums:
    """Of one value a row; labels are true for what is desired."""
    sums: Sums = {}
    for name, of in zip(SIDES, (labels.bool(), ~labels.bool()), strict=True):
        sums |= _side(name, of, logps, tokens, rewards)
    return sums


def of_text(output: Any) -> Sums:
    """Of demonstrations, packed or not, by what trl's fused head says of each token."""
    return {
        "text_logp": output.log_probs.detach().sum(),
        "text_tokens": output.label_mask.sum(),
        "text_right": output.is_top1.sum(),
    }


def _side(
    name: str, of: torch.Tensor, logps: torch.Tensor, tokens: torch.Tensor, rewards: torch.Tensor
) -> Sums:
    return {
        f"{name}_rows": of.sum(),
        f"{name}_logp": (logps * of).sum(),
        f"{name}_tokens": (tokens * of).sum(),
        f"{name}_reward": (rewards * of).sum(),
    }


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics that trl does not log, by name; none of rows that there were not."""
    found: dict[str, float] = {}
    for side in SIDES:
        if sums.get(f"{side}_tokens"):
            mean = sums[f"{side}_logp"] / sums[f"{side}_tokens"]
            found[f"logps/{side}_per_token"] = mean
            found[f"tokens/{side}"] = sums[f"{side}_tokens"] / sums[f"{side}_rows"]
    trained = next((s for s in ("text", "chosen") if sums.get(f"{s}_tokens")), None)
    if trained is not None:
        found["perplexity"] = _exp(-sums[f"{trained}_logp"] / sums[f"{trained}_tokens"])
    for length in _LENGTHS:
        if rows := sums.get(f"{length}_rows"):
            found[f"rewards/margins_chosen_{length}"] = sums[f"{length}_margin"] / rows
            found[f"rewards/accuracies_chosen_{length}"] = sums[f"{length}_wins"] / rows
    return found


def exact(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics that trl takes as means over batches, as means over rows, or over tokens of text."""
    found: dict[str, float] = {}
    if tokens := sums.get("text_tokens"):
        found["loss"] = -sums["text_logp"] / tokens
        found["mean_token_accuracy"] = sums["text_right"] / tokens
    means = {s: sums[f"{s}_reward"] / rows for s in SIDES if (rows := sums.get(f"{s}_rows"))}
    found |= {f"rewards/{side}": mean for side, mean in means.items()}
    if len(means) == len(SIDES):
        found["rewards/margins"] = means["chosen"] - means["rejected"]
    if "wins" in sums:
        found["rewards/accuracies"] = sums["wins"] / sums["chosen_rows"]
    else:  # batches hold now more of one label, now of the other
        found |= {f"logps/{side}": sums[f"{side}_logp"] / sums[f"{side}_rows"] for side in means}
    return found


def _exp(nats: float) -> float:
    # A NaN stays one.
    return math.exp(nats) if not nats > 700 else math.inf


def per_row(output: Any, length: int, shared: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over the tokens of each row of trl's fused head; `shared` weighs them (LD-DPO)."""
    log_probs: torch.Tensor = output.log_probs.detach()[:, -length:]
    return log_probs.sum(1) if shared is None else (log_probs * shared).sum(1)


def ld_weights(mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """LD-DPO's: 1 up to the shorter side's length, alpha beyond (arXiv:2409.06411, eq. 10).

    mask: (chosen rows, then rejected rows; length), 1 where a token is scored.
    """
    place, count = mask.cumsum(1), mask.sum(1)
    chosen, rejected = count.chunk(2)
    shorter = torch.minimum(chosen, rejected).repeat(2).unsqueeze(1)
    return torch.where(place > shorter, alpha, 1.0)
