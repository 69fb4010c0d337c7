"""RLOO, reinforcement learning from the scores of a judge: the second stage of RLHF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from prefcli.config_base import Count, Fraction, Positive, RuleError
from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import RLOO, TrainerAdapter


class Rloo(Method):
    """REINFORCE Leave-One-Out (Ahmadian et al. 2024, arXiv:2402.14740, eq. 8): RLHF by a judge."""

    name: ClassVar[str] = "rloo"
    suits: ClassVar[str] = "prompts and a judge"
    rows: ClassVar[RowKind] = "prompt"
    trainer: ClassVar[TrainerAdapter] = RLOO
    needs_sft: ClassVar[bool] = False
    needs_judge: ClassVar[bool] = True
    keeps_adapter_dropout: ClassVar[bool] = False
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=1e-6, lora=1e-5)
    hidden_metrics: ClassVar[tuple[str, ...]] = ("loss",)

    beta: Positive = 0.05
    """Weight of the KL divergence from the reference in the reward of a completion (eq. 2)."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """Completions of each prompt; the mean reward of the others is the baseline of each (eq. 8).
    training.global_batch_size counts completions and is a multiple of it."""
    max_completion_length: Count = 256
    """Longest completion, in tokens."""
    sampling_batch_size: Count | None = None
    """Completions that a device samples at once, which limits the cache of keys and values.
    Default: all that it trains on in a step."""
    temperature: Positive = 1.0
    """Sampling temperature, also of the log-probabilities in the loss."""
    top_p: Fraction = 1.0
    """Sample from the most likely tokens with this total probability. Below 1 the loss
    assumes other probabilities than those that are sampled from."""
    normalize_advantages: bool = False
    """Divide the advantages of a step by their standard deviation."""
    reward_clip_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Limits of a judge's score: lowest and highest."""
    mask_truncated_completions: bool = False
    """Leave completions that are cut at max_completion_length out of the loss."""

    @model_validator(mode="after")
    def _clip_range_is_ordered(self) -> Rloo:
        limits = self.reward_clip_range
        if limits is not None and limits[0] >= limits[1]:
            raise RuleError(
                f"reward_clip_range: the lowest score ({limits[0]:g}) must be below the highest "
                f"({limits[1]:g})"
            )
        return self

    def trl_options(self) -> Mapping[str, Any]:
        keys = (
            *("beta", "num_generations", "max_completion_length", "temperature", "top_p"),
            *("normalize_advantages", "mask_truncated_completions"),
        )
        return {
            **{key: getattr(self, key) for key in keys},
            "reward_clip_range": self.reward_clip_range and tuple(self.reward_clip_range),
            # An evaluation answers each prompt once.
            "num_generations_eval": 1,
        }

    @property
    def sampled_tokens(self) -> int:
        return self.max_completion_length

    def sampled_together(self, rows: int) -> int:
        return min(self.sampling_batch_size or rows, rows)

    @property
    def completions_per_prompt(self) -> int:
        return self.num_generations

    @property
    def reward_is_linear(self) -> bool:
        return False

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(1e-6, 1e-4, "trl's examples of RLOO with LoRA")
            if lora
            else Band(1e-7, 1e-5, "Ahmadian et al. 2024 and trl's examples")
        )

    def notes(self) -> list[str]:
        return [
            "rloo trains without dropout, also that of an adapter: what is sampled and what is "
            "trained must be the same policy",
            *(
                ["rloo.top_p below 1 samples from other probabilities than the loss assumes"]
                if self.top_p < 1
                else []
            ),
        ]
