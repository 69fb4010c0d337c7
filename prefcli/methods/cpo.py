"""Contrastive Preference Optimization and AlphaPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from prefcli.config_base import NonNegative, Positive
from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import CPO, TrainerAdapter


def _by_loss(*, alphapo: float, others: float) -> Any:
    """Make a default that depends on loss_type, which is validated first."""
    return Field(
        default_factory=lambda data: alphapo if data.get("loss_type") == "alphapo" else others
    )


class Cpo(Method):
    """Contrastive Preference Optimization (Xu et al. 2024, arXiv:2401.08417, eq. 3), AlphaPO."""

    name: ClassVar[str] = "cpo"
    suits: ClassVar[str] = "pairs, and a model that is already good at the task"
    rows: ClassVar[RowKind] = "pair"
    needs_reference: ClassVar[bool] = False
    trainer: ClassVar[TrainerAdapter] = CPO
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=6e-7, lora=6e-6)

    loss_type: Literal["sigmoid", "hinge", "ipo", "alphapo"] = "sigmoid"
    """sigmoid: CPO. hinge, ipo: the losses of SLiC (arXiv:2305.10425) and IPO (arXiv:2310.12036)
    without a reference. alphapo: AlphaPO (Gupta et al. 2025, arXiv:2501.03884)."""
    beta: Positive = _by_loss(alphapo=2.5, others=0.1)
    """Scale of the reward: log-probability of a response (sigmoid, hinge), mean per token (ipo),
    or its transform by alpha (alphapo). Default 0.1; alphapo 2.5, as in its Table 3."""
    cpo_alpha: NonNegative = _by_loss(alphapo=0.0, others=1.0)
    """Weight of the SFT term on the chosen response. Default 1, as in the paper; alphapo 0."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Assumed share of swapped labels; for sigmoid and alphapo."""
    alpha: float = Field(
        default_factory=lambda data: 0.25 if data.get("loss_type") == "alphapo" else 0.0
    )
    """Shape of AlphaPO's reward (1 - p^-alpha) / alpha; near 0 it is SimPO's. alphapo: 0.25."""
    gamma: NonNegative = _by_loss(alphapo=0.1, others=0.0)
    """Target margin between AlphaPO's chosen and rejected reward. alphapo: 0.1."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Cpo:
        alphapo = self.loss_type == "alphapo"
        if alphapo and not self.alpha:
            raise ValueError("alpha 0 is SimPO; use the simpo section")
        for key in ("alpha", "gamma"):
            if not alphapo and getattr(self, key):
                raise ValueError(
                    f"{key} has no effect with loss_type {self.loss_type}; set alphapo or remove it"
                )
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise ValueError(f"label_smoothing has no effect with loss_type {self.loss_type}")
        return self

    @property
    def has_sft_term(self) -> bool:
        return self.cpo_alpha > 0

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def reward_is_sum(self) -> bool:
        return self.loss_type in ("sigmoid", "hinge")

    @property
    def reward_is_linear(self) -> bool:
        return not self.alpha

    @property
    def loss_saturates(self) -> bool:
        return self.reward_is_sum

    def transform_scores(self, scores: Any) -> Any:
        if not self.alpha:
            return scores
        return (1 - (-self.alpha * scores).exp()) / self.alpha

    @property
    def sft_term_advice(self) -> str | None:
        return f"{'raise' if self.has_sft_term else 'set'} cpo.cpo_alpha"

    @property
    def length_bias_advice(self) -> str | None:
        return "use cpo.loss_type: alphapo or simpo" if self.reward_is_sum else None

    def trl_options(self) -> Mapping[str, Any]:
        return {
            # trl's name for AlphaPO is SimPO's loss with alpha.
            "loss_type": "simpo" if self.loss_type == "alphapo" else self.loss_type,
            "beta": self.beta,
            "cpo_alpha": self.cpo_alpha,
            "label_smoothing": self.label_smoothing,
            "alpha": self.alpha,
            "simpo_gamma": self.gamma,
        }

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(3e-6, 1e-4, "ten times the full values; the authors' ALMA-R for the upper end")
            if lora
            else Band(3e-7, 1e-6, "the SimPO paper's search for CPO; AlphaPO 7e-7")
        )

    def option_bands(self) -> Mapping[str, Band]:
        if self.loss_type == "alphapo":
            return {"cpo.beta": Band(2.0, 10.0, "AlphaPO 2.5, SimPO's repository")}
        return {"cpo.beta": Band(0.01, 0.5, "the SimPO paper's search for CPO, trl's advice")}
