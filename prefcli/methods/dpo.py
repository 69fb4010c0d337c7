"""Direct Preference Optimization and the pairwise losses of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from prefcli.config_base import Fraction, NonNegative, Positive
from prefcli.methods.base import (
    Band,
    LearningRates,
    Method,
    RowKind,
    pair_learning_rates,
)
from prefcli.methods.ipo import target_gap, target_gap_notes
from prefcli.methods.trainers import DPO, TrainerAdapter

PairLoss = Literal[
    "sigmoid",
    "hinge",
    "robust",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
]

_READ_LABEL_SMOOTHING = {"robust", "exo_pair", "aot", "aot_unpaired"}
# Elsewhere the unknown partition function of an f-divergence does not cancel.
_READ_F_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"}
_MEANS_OVER_TOKENS = {"ipo", "sigmoid_norm"}
# Their gradient does not vanish with a growing reward margin.
_UNBOUNDED = {*_MEANS_OVER_TOKENS, "sppo_hard"}
_SORT_ROWS = {"aot", "aot_unpaired"}
_LN_2 = math.log(2)


class Dpo(Method):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)."""

    name: ClassVar[str] = "dpo"
    suits: ClassVar[str] = "pairs, and a model fine-tuned on similar text; the default"
    rows: ClassVar[RowKind] = "pair"
    trainer: ClassVar[TrainerAdapter] = DPO
    strength_key: ClassVar[str | None] = "beta"
    learning_rates: ClassVar[LearningRates] = LearningRates(full=5e-7, lora=5e-6)

    beta: Positive = 0.1
    """Strength of the tie to the reference; a smaller value lets the policy drift further."""
    loss_type: PairLoss | list[PairLoss] = "sigmoid"
    """One of trl's pairwise losses, or a list of them combined by loss_weights."""
    loss_weights: list[NonNegative] | None = None
    """One weight per loss when loss_type is a list; the default is 1 for each."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of swapped labels assumed by robust, aot and aot_unpaired; epsilon of exo_pair."""
    ld_alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """LD-DPO (arXiv:2409.06411): weight of the tokens beyond the length of the shorter response."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        "reverse_kl"
    )
    """f-DPO (arXiv:2309.16240): divergence from the reference; reverse_kl is DPO."""
    f_alpha_divergence_coef: Fraction | None = None
    """Alpha of alpha_divergence as trl defines it, 1 minus the paper's; 1 is reverse_kl."""
    discopop_tau: Positive | None = None
    """Temperature of discopop's blend (arXiv:2406.08414, eq. 5); default: the paper's 0.05."""

    @property
    def losses(self) -> list[str]:
        return [*self.loss_type] if isinstance(self.loss_type, list) else [self.loss_type]

    @field_validator("loss_type", mode="after")
    @classmethod
    def _some_preference_loss(cls, value: str | list[str]) -> str | list[str]:
        losses = value if isinstance(value, list) else [value]
        if not losses:
            raise ValueError("the list is empty; name at least one loss")
        if len(set(losses)) != len(losses):
            raise ValueError("a loss appears twice; set its weight in loss_weights")
        if set(losses) == {"sft"}:
            raise ValueError("'sft' alone ignores the rejected response; use `prefcli sft`")
        return value

    @model_validator(mode="after")
    def _legal_combination(self) -> Dpo:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} entries for "
                f"{len(self.losses)} losses {self.losses}; give one weight for each loss"
            )
        if self.loss_weights is not None and not any(self.loss_weights):
            raise ValueError("loss_weights are all 0; set at least one above 0")
        if self.label_smoothing and not _READ_LABEL_SMOOTHING & set(self.losses):
            raise ValueError(
                f"label_smoothing has no effect with loss_type {self.losses}; only "
                f"{', '.join(sorted(_READ_LABEL_SMOOTHING))} read it. Remove it or use one of them"
            )
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise ValueError(
                "exo_pair needs label_smoothing above 0; its paper recommends 1e-3 "
                "(arXiv:2402.00856)"
            )
        return self

    @model_validator(mode="after")
    def _legal_variants(self) -> Dpo:
        losses = set(self.losses)
        if self.discopop_tau is not None and "discopop" not in losses:
            raise ValueError(f"discopop_tau has no effect with loss_type {self.losses}")
        if self.ld_alpha is not None and losses & _MEANS_OVER_TOKENS:
            raise ValueError(
                f"ld_alpha and {', '.join(sorted(losses & _MEANS_OVER_TOKENS))} both correct for "
                "length; keep one of them"
            )
        alpha = self.f_divergence_type == "alpha_divergence"
        if alpha and self.f_alpha_divergence_coef is None:
            raise ValueError(
                "f_divergence_type alpha_divergence needs f_alpha_divergence_coef, for example 0.5"
            )
        if self.f_alpha_divergence_coef is not None and not alpha:
            raise ValueError(
                f"f_alpha_divergence_coef has no effect with f_divergence_type "
                f"{self.f_divergence_type}; set alpha_divergence or remove it"
            )
        unread = losses - _READ_F_DIVERGENCE - {"sft"}
        if self.f_divergence_type != "reverse_kl" and unread:
            raise ValueError(
                f"{', '.join(sorted(unread))} has no form for f_divergence_type "
                f"{self.f_divergence_type}; choose from: {', '.join(sorted(_READ_F_DIVERGENCE))}"
            )
        return self

    @property
    def has_sft_term(self) -> bool:
        return "sft" in self.losses

    @property
    def reward_scale(self) -> float:
        return self.beta

    @property
    def reward_is_sum(self) -> bool:
        return True

    @property
    def loss_saturates(self) -> bool:
        return not _UNBOUNDED & set(self.losses)

    @property
    def sft_term_advice(self) -> str | None:
        if self.has_sft_term:
            return "weigh sft more in dpo.loss_weights"
        return f"add an SFT term (dpo.loss_type: [{', '.join((*self.losses, 'sft'))}])"

    @property
    def length_bias_advice(self) -> str | None:
        if _MEANS_OVER_TOKENS & set(self.losses):
            return None
        return "take dpo.loss_type: sigmoid_norm, dpo.ld_alpha or simpo"

    @property
    def rows_are_independent(self) -> bool:
        return not _SORT_ROWS & set(self.losses)

    def smallest_batch(self) -> tuple[int, str]:
        if not self.rows_are_independent:
            return 2, "aot sorts the rows of a device batch, and with one row it equals dpo"
        return 1, ""

    def trl_options(self) -> Mapping[str, Any]:
        return {
            "beta": self.beta,
            "loss_type": self.losses,
            "loss_weights": self.loss_weights,
            "label_smoothing": self.label_smoothing,
            "ld_alpha": self.ld_alpha,
            "f_divergence_type": self.f_divergence_type,
            # trl requires numbers, which have no effect where these are None.
            "f_alpha_divergence_coef": self.f_alpha_divergence_coef or 0.5,
            "discopop_tau": self.discopop_tau or 0.05,
        }

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        return pair_learning_rates(lora)

    def option_bands(self) -> Mapping[str, Band]:
        if set(self.losses) & _MEANS_OVER_TOKENS:
            # No published values for means; those for sums do not carry over.
            return {}
        low, source = 0.01, "zephyr 0.01 to 0.1, SmolLM2 0.5, OpenHermes' best 0.6"
        if "sppo_hard" in self.losses:
            low, source = 0.001, f"SPPO's 0.001; {source}"
        return {"dpo.beta": Band(low, 0.6, source)}

    def start_loss(
        self, labels: Sequence[bool] = (), chosen_nll: float | None = None
    ) -> float | None:
        weights = self.loss_weights or [1.0] * len(self.losses)
        if self.ld_alpha is not None:
            chosen_nll = None  # trl weights the tokens of logps/chosen
        parts = [
            chosen_nll if loss == "sft" else _start_loss(loss, self.beta, self.label_smoothing)
            for loss in self.losses
        ]
        if None in parts:
            return None
        return sum(w * part for w, part in zip(weights, parts, strict=True) if part is not None)

    def start_loss_slack(self, nats: float, nats_per_token: float) -> float:
        slack = self.reward_scale * nats
        if "ipo" in self.losses:
            slack += 2 * nats_per_token / self.beta
        if "sppo_hard" in self.losses:
            slack += nats / self.beta
        return max(1.0, sum(self.loss_weights or [1.0] * len(self.losses))) * slack

    def notes(self) -> list[str]:
        return target_gap_notes(self.beta) if "ipo" in self.losses else []


def _start_loss(loss: str, beta: float, epsilon: float) -> float:
    """Return the loss where every log-ratio is 0."""
    if loss == "exo_pair":  # KL((1/2, 1/2) || (1 - epsilon, epsilon)); arXiv:2402.00856, eq. 16
        return -_LN_2 - (math.log1p(-epsilon) + math.log(epsilon)) / 2
    if loss == "ipo":
        return target_gap(beta) ** 2
    if loss == "sppo_hard":  # (1/(2 beta))^2 per side; arXiv:2405.00675, eq. 4.7
        return 1 / (2 * beta**2)
    if loss in ("bco_pair", "nca_pair"):
        return 2 * _LN_2
    if loss in ("hinge", "apo_zero", "apo_down"):
        return 1.0
    if loss == "discopop":  # half logistic, half exponential; arXiv:2406.08414, eq. 5
        return (_LN_2 + 1) / 2
    return _LN_2
