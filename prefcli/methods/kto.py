"""Kahneman-Tversky Optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from prefcli.config_base import Positive
from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import KTO, TrainerAdapter

Weight = Positive | Literal["auto"]

_MAX_RATIO = 4 / 3
"""Upper end of the paper's band for (lambda_D n_D) / (lambda_U n_U); the lower is 1 (eq. 8)."""


class Kto(Method):
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7): ratings."""

    name: ClassVar[str] = "kto"
    suits: ClassVar[str] = "single responses labelled good or bad"
    rows: ClassVar[RowKind] = "labelled"
    trainer: ClassVar[TrainerAdapter] = KTO
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=1e-6, lora=5e-6)

    beta: Positive = 0.1
    """Strength of the tie to the reference."""
    desirable_weight: Weight = "auto"
    """Weight of rows labelled true (the paper's lambda_D). auto: 1, or more if they are rare."""
    undesirable_weight: Weight = "auto"
    """Weight of rows labelled false (the paper's lambda_U). auto: 1, or more if they are rare."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: the paper's loss. apo_zero_unpaired: APO-zero (D'Oosterlinck et al. 2024,
    arXiv:2408.06266) on single responses, which needs no estimate of the KL."""

    def trl_options(self) -> Mapping[str, Any]:
        desirable, undesirable = self._weights
        return {
            "beta": self.beta,
            "desirable_weight": desirable,
            "undesirable_weight": undesirable,
            "loss_type": self.loss_type,
        }

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def reward_is_sum(self) -> bool:
        return True

    @property
    def loss_saturates(self) -> bool:
        return True

    @property
    def _weights(self) -> tuple[float, float]:
        assert self.desirable_weight != "auto", "for_labels resolves the weights"
        assert self.undesirable_weight != "auto", "for_labels resolves the weights"
        return self.desirable_weight, self.undesirable_weight

    def smallest_batch(self) -> tuple[int, str]:
        if not self.pairs_neighbours:
            return 1, ""
        return 2, "its KL term pairs each prompt with the response of another row of that batch"

    @property
    def pairs_neighbours(self) -> bool:
        return self.loss_type == "kto"

    def for_labels(self, desirable: int, undesirable: int) -> tuple[Self, list[str]]:
        """Resolve `auto` weights so that (w_D n_D) / (w_U n_U) is in [1, 4/3] if possible."""
        good, bad = self.desirable_weight, self.undesirable_weight
        counts = desirable / undesirable
        if good == "auto" and bad == "auto":
            good, bad = ("auto", 1.0) if counts < 1 else (1.0, "auto")
        if good == "auto":
            assert bad != "auto"
            good = _clamp(1.0, 1 / counts * bad, _MAX_RATIO / counts * bad)
        elif bad == "auto":
            bad = _clamp(1.0, counts * good / _MAX_RATIO, counts * good)
        resolved = {"desirable_weight": good, "undesirable_weight": bad}
        ratio = good * desirable / (bad * undesirable)
        line = (
            f"kto: {desirable} desirable rows with weight {good:.3g}, {undesirable} undesirable "
            f"rows with weight {bad:.3g}: ratio {ratio:.2f} to 1"
        )
        # trl rounds its bounds to two digits.
        line += (
            " (the paper's band is 1 to 1.33, eq. 8)"
            if 0.99 <= ratio <= 1.01 * _MAX_RATIO
            else ", outside the paper's 1 to 1.33 (eq. 8); set one weight to auto to be inside"
        )
        return self.model_copy(update=resolved), [line]

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return (
            Band(1e-6, 1e-5, "published LoRA runs of KTO")
            if lora
            else Band(5e-7, 5e-6, "the KTO authors' advice in trl; at most 1e-6 at beta 0.1")
        )

    def option_bands(self) -> Mapping[str, Band]:
        return {
            "kto.beta": Band(0.01, 0.9, "the scan of alignment-handbook"),
        }

    def start_loss(
        self, labels: Sequence[bool] = (), chosen_nll: float | None = None
    ) -> float | None:
        if "auto" in (self.desirable_weight, self.undesirable_weight):
            return None
        good, bad = self._weights
        if labels:
            return sum(good if label else bad for label in labels) / (2 * len(labels))
        return good / 2 if good == bad else None

    def notes(self) -> list[str]:
        if self.loss_type != "kto":
            return []
        return [
            "kto estimates its KL term within a device batch, so per_device_train_batch_size is "
            "part of the method; its authors advise 4 or more. Several devices average their "
            "estimates; one device that accumulates instead has a noisier one"
        ]


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
