"""Installation of the packed forward on the models that trl prepares for scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from prefcli.errors import Problem, RecipeError
from prefcli.model.lora import has_whole_layers
from prefcli.model.peft_wrapper import base_of
from prefcli.model.reward_head import is_reward_model
from prefcli.packed_forward import prefix_attention as segments
from prefcli.packed_forward import varlen
from prefcli.packed_forward.forward import Counts, LabelForward, PackedForward, install
from prefcli.packed_forward.prefix_attention import Carrier
from prefcli.packed_forward.reward_forward import RewardForward
from prefcli.packed_forward.self_check import disagreement
from prefcli.packed_forward.supported_models import reason_against
from prefcli.packed_forward.truncated_model import truncated_model
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.sections import Performance
from prefcli.trl_integration.trl_compat import fused_head_replaced

_IN_USE = "in use"

_MULTIPLE = 128
"""On a GPU the length of a packed row is a multiple of this: for each size that is new to it,
cuBLAS searches for the best kernel."""

ATTENTIONS = (varlen.COMPILED, varlen.NAME, segments.NAME)
"""Names of attention functions, the fastest first."""


class FastForward:
    """The packed forward of a run: whether its models use it, why not, and what it saved."""

    def __init__(
        self,
        options: Performance,
        strategy: Strategy,
        max_length: int,
        *,
        packs: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        """packs: rows are joined to full sequences. autocast: dtype of autocast on a GPU."""
        self._options = options
        self._strategy = strategy
        self._max_length = max_length
        self._packs = packs
        self._autocast = autocast
        self._compiles = options.compile == "on"
        self.counts = Counts(multiple=_MULTIPLE if torch.cuda.is_available() else 1)
        self.reason: str | None = None
        """Why a model of the run uses trl's own forward pass."""
        self.attention: str | None = None
        """Name of the attention function that is used."""
        self.refused: dict[str, str] = {}
        """Attention functions that were rejected, and why."""
        if options.shared_prefix == "off":
            self.reason = "performance.shared_prefix is off"

    def brief_lines(self) -> list[str]:
        """Return lines only if a faster way is not used."""
        return self.lines() if self._status != _IN_USE or self.refused else []

    def lines(self) -> list[str]:
        """Describe the forward for the log."""
        if self._status != _IN_USE:
            return [f"speed: rows are scored by trl's own forward: {self._status}"]
        return [
            "speed: rows are scored without padding, and a shared prompt only once",
            *(
                f"speed: attention is {self.attention}; {name} is not used: {why}"
                for name, why in self.refused.items()
            ),
        ]

    def closing_lines(self) -> list[str]:
        """Describe what the packed forward saved, for the end of the log."""
        counts = self.counts
        lines = []
        if counts.stock:
            lines.append(
                f"speed: {counts.stock} forward passes fell back to trl's implementation: "
                "unsupported batch fields"
            )
        if not counts.fast:
            return lines
        return [
            *lines,
            f"speed: {counts.fast} forward passes over {counts.packed:,} tokens instead of "
            f"{counts.padded:,} with padding and repeated prompts "
            f"({counts.padded / counts.packed:.1f} times fewer)",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of run.json."""
        how: dict[str, Any] = {"attention": self.attention} if self.attention else {}
        if self.refused:
            how["refused"] = self.refused
        return {"shared_prefix": self._status, **how, **self.counts.as_dict()}

    @property
    def _status(self) -> str:
        if self.reason is not None:
            return self.reason
        return _IN_USE if self.attention is not None else "this trl trainer has its own forward"

    def patched_trainers(self) -> AbstractContextManager[None]:
        """Prepare every model that trl prepares while a trainer is built."""
        return fused_head_replaced(self.prepare)

    @contextmanager
    def installed(self, model: PreTrainedModel) -> Iterator[None]:
        """Prepare a model as a trainer does, and restore it when the block ends."""
        own = vars(model).get("forward")
        uninstall = self.prepare(model)
        try:
            yield
        finally:
            uninstall()
            vars(model).pop("forward", None)
            if own is not None:
                model.forward = own

    def is_usable(self, model: PreTrainedModel | PeftModel) -> bool:
        """Return whether the packed forward supports this model."""
        base = base_of(model)
        with self.installed(base):
            return self.reason is None

    @property
    def is_in_use(self) -> bool:
        """Return whether the models of the run are scored packed."""
        return self._status == _IN_USE

    def collated(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Carrier]:
        """Return the layout of a batch on the host, as an argument of the model."""
        return {segments.LAYOUT: Carrier(self.counts.pack(input_ids, attention_mask, labels))}

    def prepare(self, model: PreTrainedModel, **options: Any) -> Callable[[], None]:
        """Install the packed forward if the model supports it, on trl's fused head of a language
        model.

        Returns a function that removes the packed forward. Raises RecipeError if the recipe
        requires it and the model does not support it.
        """
        if not is_reward_model(model):
            add_fused_lm_head(model, **options)
        if self._options.shared_prefix == "off":
            return _nothing
        reason = "sft.packing leaves no padding" if self._packs else None
        reason = reason or reason_against(model, self._strategy)
        if reason is None:
            reason, uninstall = self._try(model)
        if reason is None:
            return uninstall
        self._refuse(reason)
        return _nothing

    def _refuse(self, reason: str) -> None:
        """Fall back to trl's own forward. Raises RecipeError if the recipe excludes that."""
        if self._options.shared_prefix == "on":
            raise RecipeError(
                Problem(
                    f"the packed forward does not support this model: {reason}",
                    path="performance.shared_prefix",
                    hint="set auto to fall back to trl's own forward",
                    code="TRN067",
                )
            )
        self.reason = reason

    def _try(self, model: PreTrainedModel) -> tuple[str | None, Callable[[], None]]:
        """Return (why the model cannot use it, function that removes it)."""
        packed: PackedForward | str
        if is_reward_model(model):
            packed = RewardForward.of(model)
        else:
            packed = LabelForward.of(model) or "trl requests outputs that it does not compute"
        if isinstance(packed, str):
            return packed, _nothing
        difference = None
        checked = self._checkable(model, packed)
        compiles = self._compiles
        if compiles and self._strategy == "fsdp2":
            self.refused[varlen.COMPILED] = "under fsdp2 layers are sharded and not compiled"
            compiles = False
        for attention in attentions(checked, compiled=compiles):
            difference = self._disagreement(checked, packed, attention)
            if difference is None:
                self.attention = attention
                return None, install(model, packed, self.counts, attention)
            self.refused[attention] = difference
        return difference, _nothing

    def _checkable(self, model: PreTrainedModel, packed: PackedForward) -> PreTrainedModel:
        """Return the model for the self-check: its first layers if it will be sharded."""
        if self._strategy != "fsdp2":
            return model
        # Before sharding it may be on the CPU; after that no process can run it alone.
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        truncated = truncated_model(model, torch.device(kind), self._autocast or model.dtype)
        if isinstance(packed, LabelForward):
            add_fused_lm_head(truncated, outputs=packed.outputs)
        return truncated

    def _disagreement(
        self, model: PreTrainedModel, packed: PackedForward, attention: str
    ) -> str | None:
        @contextmanager
        def fast() -> Iterator[None]:
            uninstall = install(model, packed, Counts(self.counts.multiple), attention)
            try:
                yield
            finally:
                uninstall()

        # Quantised weights are multiplied in a dtype of their own.
        own = self._autocast is not None or getattr(model, "is_quantized", False)
        kind = model.device.type
        in_float32 = model.dtype == torch.float32 or has_whole_layers(model)
        cast = self._autocast is not None and in_float32
        with torch.autocast(kind, self._autocast, enabled=cast):
            return disagreement(
                model,
                packed,
                fast,
                max_length=self._max_length,
                precise=model.dtype == torch.float32 and not own,
            )


def _nothing() -> None:
    """Remove nothing."""


def attentions(model: PreTrainedModel, *, compiled: bool = False) -> list[str]:
    """Return the attentions to try, the fastest first. compiled: fuse the decoder layers."""
    left_out = set() if compiled else {varlen.COMPILED}
    if not varlen.is_given(model):
        left_out = {varlen.COMPILED, varlen.NAME}
    return [name for name in ATTENTIONS if name not in left_out]
