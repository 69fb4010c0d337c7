"""Identity Preference Optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from prefcli.config_base import Positive
from prefcli.methods.base import (
    Band,
    LearningRates,
    Method,
    RowKind,
    pair_learning_rates,
)
from prefcli.methods.trainers import DPO, TrainerAdapter


class Ipo(Method):
    """Identity Preference Optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17): noisy data."""

    name: ClassVar[str] = "ipo"
    suits: ClassVar[str] = "pairs with noisy or contested labels"
    rows: ClassVar[RowKind] = "pair"
    trainer: ClassVar[TrainerAdapter] = DPO
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=5e-7, lora=5e-6)

    beta: Positive = 0.1
    """The paper's tau: the loss pulls the margin to 1/(2 beta) nats per token (trl averages)."""

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def reward_is_sum(self) -> bool:
        return True

    @property
    def target_gap(self) -> float:
        """Margin of the log-ratios at which the loss is zero, in nats per token."""
        return target_gap(self.beta)

    def trl_options(self) -> Mapping[str, Any]:
        return {"beta": self.beta, "loss_type": ["ipo"]}

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return pair_learning_rates(lora)

    def option_bands(self) -> Mapping[str, Band]:
        return {"ipo.beta": Band(0.01, 1.0, "the scan of alignment-handbook (0.01 to 0.9)")}

    def start_loss(
        self, labels: Sequence[bool] = (), chosen_nll: float | None = None
    ) -> float | None:
        return self.target_gap**2

    def start_loss_slack(self, nats: float, nats_per_token: float) -> float:
        return self.reward_scale * nats + 2 * nats_per_token / self.beta

    def notes(self) -> list[str]:
        return target_gap_notes(self.beta)


def target_gap(beta: float) -> float:
    """Return the margin IPO pulls to, in nats per token; its square is the loss at margin 0."""
    return 1 / (2 * beta)


def target_gap_notes(beta: float) -> list[str]:
    """Explain the target that beta sets, and warn about one that is far away."""
    gap = target_gap(beta)
    asks = (
        f"ipo pulls the margin to 1/(2 beta) = {gap:.3g} nats per token, so the loss starts at "
        f"{gap**2:.4g} whatever the model"
    )
    if gap <= 1:
        return [asks]
    return [
        f"{asks}. At learning rates that reach it, text degenerates while accuracy still looks "
        "good. With beta 1.0 the target is 0.5 nats per token"
    ]
