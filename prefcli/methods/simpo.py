"""Simple Preference Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.config_base import NonNegative, Positive
from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import CPO, TrainerAdapter


class Simpo(Method):
    """Simple Preference Optimization (Meng et al. 2024, arXiv:2405.14734, eq. 6): no reference."""

    name: ClassVar[str] = "simpo"
    suits: ClassVar[str] = "pairs with long responses, and no memory for a reference"
    rows: ClassVar[RowKind] = "pair"
    needs_reference: ClassVar[bool] = False
    trainer: ClassVar[TrainerAdapter] = CPO
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=6e-7, lora=6e-6)
    # Without cpo_alpha the SFT term has weight 0.
    hidden_metrics: ClassVar[tuple[str, ...]] = ("nll_loss",)

    beta: Positive = 2.0
    """Scale of the reward, the mean log-probability of a response's tokens."""
    gamma: NonNegative = 1.0
    """Target margin between the chosen and the rejected reward; the authors use beta / 2."""
    cpo_alpha: NonNegative = 0.0
    """Weight of CPO's SFT term on the chosen response, against forgetting."""

    @property
    def has_sft_term(self) -> bool:
        return self.cpo_alpha > 0

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def sft_term_advice(self) -> str | None:
        return f"{'raise' if self.has_sft_term else 'set'} simpo.cpo_alpha"

    def trl_options(self) -> Mapping[str, Any]:
        return {
            "loss_type": "simpo",
            "beta": self.beta,
            "simpo_gamma": self.gamma,
            "cpo_alpha": self.cpo_alpha,
        }

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(3e-6, 1e-5, "ten times the authors' full values, alignment-handbook's LoRA rule")
            if lora
            else Band(3e-7, 1e-6, "the authors' repository")
        )

    def option_bands(self) -> Mapping[str, Band]:
        return {
            "simpo.beta": Band(2.0, 10.0, "the authors' repository"),
            "simpo.gamma": Band(
                0.1 * self.beta, 0.8 * self.beta, "gamma/beta 0.1 to 0.8, the authors' repository"
            ),
        }
