"""Identity Preference Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.methods.base import LearningRates, Method, RowKind
from prefcli.options import Positive


class Ipo(Method):
    """Identity Preference Optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17): noisy data."""

    name: ClassVar[str] = "ipo"
    rows: ClassVar[RowKind] = "pair"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=5e-7, lora=5e-6)

    beta: Positive = 0.1
    """The paper's tau: the margin is pulled to 1/(2 beta), in nats a token (trl averages)."""

    @property
    def target_gap(self) -> float:
        """Margin of the log-ratios at which the loss is zero, in nats per token."""
        return 1 / (2 * self.beta)

    def trl_classes(self) -> tuple[type[Any], type[Any]]:
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer

    def trl_options(self) -> Mapping[str, Any]:
        return {"beta": self.beta, "loss_type": ["ipo"]}

    def start_loss(self) -> float | None:
        return self.target_gap**2

    def notes(self) -> list[str]:
        gap = f"ipo pulls the margin to 1/(2 beta) = {self.target_gap:.3g} nats a token"
        if self.target_gap <= 1:
            return [gap]
        return [
            f"{gap}. That is far: with a learning rate that can reach it, text falls apart "
            "while accuracy still looks good. beta 1.0 asks for 0.5 nats a token."
        ]
