"""Kahneman-Tversky Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from prefcli.methods.base import LearningRates, Method, RowKind
from prefcli.options import Positive


class Kto(Method):
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7): thumbs."""

    name: ClassVar[str] = "kto"
    rows: ClassVar[RowKind] = "labelled"
    # The KL term pairs each prompt with its neighbour's completion inside the device batch.
    min_per_device_batch: ClassVar[int] = 2
    sequential: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(full=1e-6, lora=5e-6)

    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: Positive = 1.0
    """Weight of rows labelled true (the paper's lambda_D)."""
    undesirable_weight: Positive = 1.0
    """Weight of rows labelled false (the paper's lambda_U)."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"

    def trl_classes(self) -> tuple[type[Any], type[Any]]:
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer

    def trl_options(self) -> Mapping[str, Any]:
        return {
            "beta": self.beta,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
            "loss_type": self.loss_type,
        }

    def start_loss(self) -> float | None:
        # Half the mean label weight: exact when both weights agree, else it depends on the mix.
        if self.desirable_weight == self.undesirable_weight:
            return 0.5 * self.desirable_weight
        return None
