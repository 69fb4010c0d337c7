"""Sums over the rows of a batch, and the metrics computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Sums = dict[str, torch.Tensor]
"""Scalars on the device; nothing waits for them until they are read."""

RowScores = dict[str, float]
"""A held-out row: its index `row` in the eval dataset, its `score`, and the rewards and tokens."""

_Sides = Sequence[torch.Tensor]

SIDES = ("chosen", "rejected")
_LENGTHS = ("longer", "shorter")


def sum_pairs(logps: _Sides | None, tokens: _Sides, rewards: _Sides) -> Sums:
    """Add up pairs. Each argument: (chosen, rejected), a value per row.

    logps: sums in nats; None for a reward model, which has none.
    """
    sums: Sums = {}
    for at, name in enumerate(SIDES):
        logp = None if logps is None else logps[at]
        sums |= _side(name, torch.ones_like(rewards[at]), logp, tokens[at], rewards[at])
    margin = rewards[0] - rewards[1]
    wins = (margin > 0).float()
    sums["wins"] = wins.sum()
    for name, rows in zip(_LENGTHS, (tokens[0] > tokens[1], tokens[0] < tokens[1]), strict=True):
        sums |= {
            f"{name}_rows": rows.sum(),
            f"{name}_margin": (margin * rows).sum(),
            f"{name}_wins": (wins * rows).sum(),
        }
    return sums


def count_responses(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Count the tokens of each response: those after the common beginning of both sides.

    ids, mask: of all chosen rows, then of all rejected ones, padded on the right. Returns the
    counts of (chosen, rejected).
    """
    lengths = mask.sum(1).chunk(2)
    chosen, rejected = ids.chunk(2)
    both = mask.bool().chunk(2)
    common = ((chosen == rejected) & both[0] & both[1]).cumprod(1).sum(1)
    return tuple(length - common for length in lengths)


def pair_scores(tokens: _Sides, rewards: _Sides) -> dict[str, torch.Tensor]:
    """Return values per pair; the score is the margin."""
    return {
        "score": rewards[0] - rewards[1],
        **{f"{side}_reward": reward for side, reward in zip(SIDES, rewards, strict=True)},
        **{f"{side}_tokens": count for side, count in zip(SIDES, tokens, strict=True)},
    }


def labelled_scores(
    tokens: torch.Tensor, rewards: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return values per labelled row; the score is the reward, negated for undesirable rows."""
    return {
        "score": rewards.where(labels.bool(), -rewards),
        "reward": rewards,
        "tokens": tokens,
    }


def read_scores(rows: Sequence[int], scores: Mapping[str, _Sides]) -> list[RowScores]:
    """Read the values of rows, batch by batch, from the device at once."""
    if not rows:
        return []
    columns = torch.stack([torch.cat(list(batches)).double() for batches in scores.values()])
    return [
        {"row": row, **dict(zip(scores, values, strict=True))}
        for row, values in zip(rows, columns.T.tolist(), strict=True)
    ]


def sum_labelled(
    logps: torch.Tensor, tokens: torch.Tensor, rewards: torch.Tensor, labels: torch.Tensor
) -> Sums:
    """Add up labelled rows. Each argument: a value per row; labels are true for desirable rows."""
    sums: Sums = {}
    for name, rows in zip(SIDES, (labels.bool(), ~labels.bool()), strict=True):
        sums |= _side(name, rows, logps, tokens, rewards)
    return sums


def sum_completions(
    scores: torch.Tensor, log_ratios: torch.Tensor, tokens: torch.Tensor, beta: float
) -> Sums:
    """Add up sampled completions. Each argument but beta: a value per completion.

    scores: NaN where the judge gave none. log_ratios: of policy and reference, in nats. tokens: 0
    for a completion that the loss skips.
    """
    scored = ~scores.isnan()
    objective = scores - beta * log_ratios
    return {
        "completions": torch.ones_like(scores).sum(),
        "scored": scored.sum(),
        "score": scores.nansum(),
        "score_square": scores.double().square().nansum(),
        "objective": objective.nansum(),
        "measured": (tokens > 0).sum(),
        "log_ratio": log_ratios.sum(),
    }


def equal_share(scores: torch.Tensor) -> float:
    """Return the share of prompts whose scored completions have one score, (prompts, each)."""
    highest, lowest = (scores.nan_to_num(nan=fill) for fill in (-math.inf, math.inf))
    return float((highest.amax(1) <= lowest.amin(1)).double().mean())


def sum_entropy(output: Any) -> Sums:
    """Add up the entropy of sampled tokens, from the output of trl's fused head."""
    return {
        "entropy": output.entropy.detach().double().sum(),
        "entropy_tokens": output.label_mask.sum(),
    }


def sum_text(output: Any) -> Sums:
    """Add up the tokens of demonstrations, packed or not, from the output of trl's fused head."""
    return {
        "text_logp": output.log_probs.detach().sum(),
        "text_tokens": output.label_mask.sum(),
        "text_right": output.is_top1.sum(),
    }


def sum_ends(
    log_probs: torch.Tensor, labels: torch.Tensor, stop_ids: torch.Tensor, *, packs: bool
) -> Sums:
    """Add up the probability of the last stop token of each row that has one.

    log_probs: of all labels but the first. packs: rows are joined, and all stop tokens count.
    """
    is_end = torch.isin(labels[:, 1:], stop_ids)
    if not packs:
        is_end &= is_end.flip(1).cumsum(1).flip(1) == 1
    probabilities = log_probs.detach().float().exp() * is_end
    return {"ends": is_end.sum(), "ends_probability": probabilities.sum()}


def _side(
    name: str,
    rows: torch.Tensor,
    logps: torch.Tensor | None,
    tokens: torch.Tensor,
    rewards: torch.Tensor,
) -> Sums:
    return {
        f"{name}_rows": rows.sum(),
        **({f"{name}_logp": (logps * rows).sum()} if logps is not None else {}),
        f"{name}_tokens": (tokens * rows).sum(),
        f"{name}_reward": (rewards * rows).sum(),
    }


def per_token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Compute the metrics that trl does not log; a metric without rows is absent."""
    metrics: dict[str, float] = {}
    for side in SIDES:
        if sums.get(f"{side}_tokens"):
            if f"{side}_logp" in sums:
                mean = sums[f"{side}_logp"] / sums[f"{side}_tokens"]
                metrics[f"logps/{side}_per_token"] = mean
            metrics[f"tokens/{side}"] = sums[f"{side}_tokens"] / sums[f"{side}_rows"]
    trained = next((s for s in ("text", "chosen") if sums.get(f"{s}_tokens")), None)
    if trained is not None and f"{trained}_logp" in sums:
        metrics["perplexity"] = _exp(-sums[f"{trained}_logp"] / sums[f"{trained}_tokens"])
    if ends := sums.get("ends"):
        metrics["end_probability"] = sums["ends_probability"] / ends
    for length in _LENGTHS:
        if rows := sums.get(f"{length}_rows"):
            metrics[f"rewards/margins_chosen_{length}"] = sums[f"{length}_margin"] / rows
            metrics[f"rewards/accuracies_chosen_{length}"] = sums[f"{length}_wins"] / rows
    return metrics


def exact_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Compute as means over rows, or over tokens of text, what trl averages over batches."""
    metrics: dict[str, float] = {}
    if completions := sums.get("completions"):
        metrics["unscored"] = 1 - sums["scored"] / completions
    if scored := sums.get("scored"):
        metrics["reward"] = mean = sums["score"] / scored
        squares = sums["score_square"] - scored * mean**2
        metrics["reward_std"] = math.sqrt(max(squares, 0.0) / max(scored - 1, 1))
        metrics["loss"] = -sums["objective"] / scored
    if measured := sums.get("measured"):
        metrics["objective/kl"] = sums["log_ratio"] / measured
    if tokens := sums.get("entropy_tokens"):
        metrics["entropy"] = sums["entropy"] / tokens
    if tokens := sums.get("text_tokens"):
        metrics["loss"] = -sums["text_logp"] / tokens
        metrics["mean_token_accuracy"] = sums["text_right"] / tokens
    means = {s: sums[f"{s}_reward"] / rows for s in SIDES if (rows := sums.get(f"{s}_rows"))}
    metrics |= {f"rewards/{side}": mean for side, mean in means.items()}
    if len(means) == len(SIDES):
        metrics["rewards/margins"] = means["chosen"] - means["rejected"]
    if "wins" in sums:
        metrics["rewards/accuracies"] = sums["wins"] / sums["chosen_rows"]
    else:  # the share of each label differs between batches
        metrics |= {f"logps/{side}": sums[f"{side}_logp"] / sums[f"{side}_rows"] for side in means}
    return metrics


def _exp(nats: float) -> float:
    # NaN stays NaN.
    return math.exp(nats) if not nats > 700 else math.inf


def per_row(output: Any, length: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the token log-probabilities of each row; `weights` are those of LD-DPO."""
    log_probs: torch.Tensor = output.log_probs.detach()[:, -length:]
    return log_probs.sum(1) if weights is None else (log_probs * weights).sum(1)


def ld_weights(mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return LD-DPO's weights: 1 up to the shorter length, then alpha (arXiv:2409.06411, eq. 10).

    mask: chosen rows, then rejected rows; 1 where a token is scored.
    """
    place, count = mask.cumsum(1), mask.sum(1)
    chosen, rejected = count.chunk(2)
    shorter = torch.minimum(chosen, rejected).repeat(2).unsqueeze(1)
    return torch.where(place > shorter, alpha, 1.0)
