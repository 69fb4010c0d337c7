"""The metrics of a run in words, and what of their change is worth a word."""

from __future__ import annotations

import math
from typing import NamedTuple


class Metric(NamedTuple):
    """A name to a person, and the change up to which two figures are called the same."""

    words: str
    share: float = 0.0
    """Of the first figure."""
    least: float = 0.0
    """In the metric's own unit."""


METRICS = {
    "loss": Metric("loss", share=0.01),
    "preference_loss": Metric("preference loss", share=0.01),
    "rewards/accuracies": Metric("preference accuracy", least=0.01),
    "rewards/accuracies_chosen_longer": Metric("accuracy where chosen is longer", least=0.01),
    "rewards/accuracies_chosen_shorter": Metric("accuracy where chosen is shorter", least=0.01),
    "rewards/margins": Metric("reward margin", share=0.02),
    "rewards/margins_chosen_longer": Metric("margin where chosen is longer", share=0.02),
    "rewards/margins_chosen_shorter": Metric("margin where chosen is shorter", share=0.02),
    "rewards/chosen": Metric("reward of chosen", share=0.02),
    "rewards/rejected": Metric("reward of rejected", share=0.02),
    "logps/chosen_per_token": Metric("log-probability of chosen, a token", least=0.02),
    "logps/rejected_per_token": Metric("log-probability of rejected, a token", least=0.02),
    "logps/chosen": Metric("log-probability of chosen", share=0.01),
    "logps/rejected": Metric("log-probability of rejected", share=0.01),
    "perplexity": Metric("perplexity a token", share=0.02),
    "reference_kl": Metric("KL to the reference, nats a token", least=0.001),
    "kl": Metric("KL estimate of kto", least=0.001),
    "nll_loss": Metric("loss of the SFT term", share=0.01),
    "log_odds_chosen": Metric("log odds of chosen", least=0.01),
    "log_odds_ratio": Metric("log odds ratio", least=0.01),
    "mean_token_accuracy": Metric("token accuracy", least=0.005),
    "entropy": Metric("entropy", least=0.02),
    "sft_mix/loss": Metric("loss of the demonstrations", share=0.01),
    "sft_mix/perplexity": Metric("perplexity of the demonstrations", share=0.02),
    "grad_norm": Metric("gradient norm", share=0.02),
    "learning_rate": Metric("learning rate"),
    "tokens/chosen": Metric("tokens of chosen", least=0.5),
    "tokens/rejected": Metric("tokens of rejected", least=0.5),
    "tokens_per_second": Metric("tokens a second", share=0.02),
    "memory_gib": Metric("peak memory, GiB", share=0.02),
}
"""In the order of a table. Of the thresholds none is published; they are proposals."""

SUMS = {
    "logps/chosen": "logps/chosen_per_token",
    "logps/rejected": "logps/rejected_per_token",
}
"""Sums over a response, and what says the same better where it was measured."""


def in_words(key: str) -> str:
    """A metric to a person, as metrics.jsonl names it."""
    name = key.removeprefix("eval_")
    return METRICS[name].words if name in METRICS else key


def same(key: str, before: float, after: float, rows: int | None = None) -> bool:
    """Is the difference too small to be called one? rows: those an accuracy was taken over."""
    metric = METRICS.get(key, Metric(key))
    room = max(metric.least, metric.share * abs(before))
    if "accuracies" in key:
        room = max(room, chance(rows))
    return abs(after - before) <= room


def chance(rows: int | None) -> float:
    """How far an accuracy over so many pairs strays by chance: two standard errors at one half."""
    return 1 / math.sqrt(rows) if rows else 0.05


def figure(value: float | None) -> str:
    """As many digits as a reader compares; "not finite" for what a file holds as null."""
    if value is None or not math.isfinite(value):
        return "not finite"
    size = abs(value)
    value = value or 0.0  # no -0.0000
    if size >= 1e6 or 0 < size < 5e-4:
        return f"{value:.3g}"
    return f"{value:.4f}" if size < 100 else f"{value:,.1f}"
