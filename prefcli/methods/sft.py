"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from prefcli.config_base import Flag
from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.trainers import SFT, TrainerAdapter


class Sft(Method):
    """Supervised fine-tuning: next-token cross-entropy on demonstrations, the stage before DPO."""

    name: ClassVar[str] = "sft"
    suits: ClassVar[str] = "demonstrations; the stage before the others"
    rows: ClassVar[RowKind] = "demonstration"
    trainer: ClassVar[TrainerAdapter] = SFT
    needs_reference: ClassVar[bool] = False
    needs_sft: ClassVar[bool] = False
    keeps_dropout: ClassVar[bool] = True
    learning_rates: ClassVar[LearningRates] = LearningRates(full=2e-5, lora=2e-4)

    completion_only_loss: Flag = True
    """Train on the completion only; no effect on rows without a prompt."""
    assistant_only_loss: Flag = False
    """Train on assistant turns only; the chat template needs {% generation %} marks."""
    packing: Flag = False
    """Join rows to sequences of max_length; attention does not cross rows."""
    loss_type: Literal["nll", "dft"] = "nll"
    """nll: cross-entropy. dft: Dynamic Fine-Tuning (Wu et al. 2025, arXiv:2508.05629)."""

    @property
    def trains_prompt(self) -> bool:
        return not self.completion_only_loss

    @property
    def assistant_only(self) -> bool:
        return self.assistant_only_loss

    @property
    def packs(self) -> bool:
        return self.packing

    def trl_options(self) -> Mapping[str, Any]:
        return {
            "completion_only_loss": self.completion_only_loss,
            "assistant_only_loss": self.assistant_only_loss,
            "packing": self.packing,
            "loss_type": self.loss_type,
        }

    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        handbook = "alignment-handbook's recipes"
        if lora:
            return Band(1e-4, 3e-4, handbook)
        if parameters <= 5e8:
            return Band(1e-5, 1e-3, f"{handbook}; SmolLM for the upper end")
        if parameters <= 2e9:
            return Band(1e-5, 3e-4, f"{handbook}; SmolLM2 1.7B for the upper end")
        return Band(1e-5, 5e-5, handbook)
