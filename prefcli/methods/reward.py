"""Reward modelling, the first stage of RLHF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from prefcli.config_base import NonNegative
from prefcli.methods.base import Band, Head, LearningRates, Method, RowKind
from prefcli.methods.trainers import REWARD, TrainerAdapter


class Reward(Method):
    """Reward model of the Bradley-Terry kind (Ouyang et al. 2022, arXiv:2203.02155, eq. 1)."""

    name: ClassVar[str] = "reward"
    suits: ClassVar[str] = "pairs, for a model that scores responses"
    rows: ClassVar[RowKind] = "pair"
    trainer: ClassVar[TrainerAdapter] = REWARD
    head: ClassVar[Head] = "reward"
    needs_reference: ClassVar[bool] = False
    needs_sft: ClassVar[bool] = False
    learning_rates: ClassVar[LearningRates] = LearningRates(full=1e-5, lora=1e-4)

    center_rewards_coefficient: NonNegative = 0.0
    """Weight of the squared sum of both rewards, which keeps their mean near 0 (Eisenstein et al.
    2023, arXiv:2312.09244, eq. 2); they recommend 0.01. The preference alone leaves the mean of
    all rewards open."""

    margin_column: Annotated[str, Field(min_length=1)] | None = None
    """Column of the data with a number for each pair: by how much the chosen response is better.
    The reward margin must exceed it (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""

    @property
    def margins_from(self) -> str | None:
        return self.margin_column

    def trl_options(self) -> Mapping[str, Any]:
        return {"center_rewards_coefficient": self.center_rewards_coefficient or None}

    @property
    def loss_saturates(self) -> bool:
        return True

    @property
    def reward_is_linear(self) -> bool:
        return False

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(1e-5, 5e-4, "trl's examples of LoRA reward models")
            if lora
            else Band(1e-6, 5e-5, "InstructGPT, Llama 2 and OpenRLHF")
        )
