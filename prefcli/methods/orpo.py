"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from prefcli.methods.base import Band, LearningRates, Method, RowKind


class Orpo(Method):
    """Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691, eq. 6): one stage."""

    name: ClassVar[str] = "orpo"
    rows: ClassVar[RowKind] = "pair"
    needs_reference: ClassVar[bool] = False
    needs_sft: ClassVar[bool] = False
    prompt_margin: ClassVar[int] = 1  # trl's ORPO adds a BOS token where the text has none
    frames_rows: ClassVar[bool] = True
    prompt_in_sft_term: ClassVar[bool] = True  # as in the authors' code
    max_merged_tokens: ClassVar[int | None] = 1  # beyond that it raises, or takes the wrong tokens
    learning_rates: ClassVar[LearningRates] = LearningRates(full=5e-6, lora=2e-5)
    metrics: ClassVar[tuple[str, ...]] = (
        *(name for name in Method.metrics if name != "reference_kl"),
        "nll_loss",
        "log_odds_ratio",
        "log_odds_chosen",
    )
    watched: ClassVar[tuple[str, ...]] = (
        "loss",
        "nll_loss",
        "log_odds_chosen",
        # Its rewards are log-probabilities times lambda; the log odds say the same, and more.
        *(name for name in Method.watched if name not in ("loss", "rewards/margins")),
    )

    lambda_: float = Field(default=0.1, alias="lambda", gt=0.0)
    """Weight of the odds-ratio term beside the SFT loss on the chosen side (trl calls it beta)."""

    @property
    def has_sft_term(self) -> bool:
        return True

    def trl_classes(self) -> tuple[type[Any], type[Any]]:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer

    def trl_options(self) -> Mapping[str, Any]:
        # trl's ORPO reads its own columns by name.
        return {"beta": self.lambda_, "remove_unused_columns": False}

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
