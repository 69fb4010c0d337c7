"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import ORPO, TrainerAdapter


class Orpo(Method):
    """Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691, eq. 6): no SFT."""

    name: ClassVar[str] = "orpo"
    suits: ClassVar[str] = "pairs, a base model and one stage"
    rows: ClassVar[RowKind] = "pair"
    needs_reference: ClassVar[bool] = False
    needs_sft: ClassVar[bool] = False
    trainer: ClassVar[TrainerAdapter] = ORPO
    strength_key: ClassVar[str | None] = "lambda"
    stronger: ClassVar[Literal["higher", "lower"]] = "higher"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=5e-6, lora=2e-5)
    # Its rewards are log-probabilities times lambda; the log odds show the same, and more.
    hidden_metrics: ClassVar[tuple[str, ...]] = ("rewards/margins",)

    lambda_: float = Field(default=0.1, alias="lambda", gt=0.0)
    """Weight of the odds-ratio term; the SFT loss of the chosen response has weight 1."""

    @property
    def has_sft_term(self) -> bool:
        return True

    @property
    def reward_scale(self) -> float:
        return self.lambda_

    def trl_options(self) -> Mapping[str, Any]:
        return {"beta": self.lambda_}

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(5e-6, 5e-5, "published LoRA runs of ORPO")
            if lora
            else Band(1e-6, 1e-5, "the paper's Mistral-ORPO and zephyr-orpo-141b, 5e-6 to 8e-6")
        )

    def option_bands(self) -> Mapping[str, Band]:
        return {
            "orpo.lambda": Band(0.05, 0.2, "zephyr-orpo-141b 0.05, Mistral-ORPO 0.1"),
        }
