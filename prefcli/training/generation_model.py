"""The policy in training, ready for `generate` under every distributed strategy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.models.utils import unwrap_model_for_generation

from prefcli.memory.gradient_checkpointing import free_memory_here
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.distributed_env import strategy_here
from prefcli.text import format_bytes

GATHERED_SHARE = 0.5
"""Sharded weights are gathered for a generation if they take at most this share of the free memory;
the rest is for the cache of keys and values."""


class GenerationModel:
    """The policy of a trainer. Processes with shards of it gather all weights if these fit; if not,
    they gather each layer for each token."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def reason_against_gathering(self) -> str | None:
        """Explain why the weights do not fit; None if they do. All processes call it together."""
        if strategy_here() not in SHARDED:
            return None
        accelerator = self._trainer.accelerator
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        policy = plugin.mixed_precision_policy if plugin is not None else None
        dtype = policy.param_dtype if policy is not None else None
        needed = sum(
            getattr(p, "ds_numel", p.numel()) * (dtype or p.dtype).itemsize
            for p in self._trainer.model.parameters()
        )
        free = torch.tensor(free_memory_here(accelerator.device.type), device=accelerator.device)
        least = int(accelerator.gather(free).min())
        if needed <= GATHERED_SHARE * least:
            return None
        return (
            f"all weights ({format_bytes(needed)}) take more than half of the free memory "
            f"({format_bytes(least)})"
        )

    @contextmanager
    def prepared(self, model: Any, *, gathers: bool) -> Iterator[PreTrainedModel]:
        """Yield a model of the trainer without the wrappers of a strategy, under its autocast.

        Under a sharded strategy all processes enter and generate together. gathers: all weights
        once, which then fit.
        """
        accelerator = self._trainer.accelerator
        with (
            unwrap_model_for_generation(
                model,
                accelerator,
                gather_deepspeed3_params=gathers,
                gradient_checkpointing_kwargs=self._trainer.args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            # peft generates past the forward that accelerate has put under autocast.
            accelerator.autocast(),
        ):
            if "generate" not in vars(unwrapped):
                register_fsdp_forward_method(unwrapped, "generate")  # peft's calls the base model
            plugin = getattr(accelerator.state, "fsdp_plugin", None)
            frees = plugin is not None and plugin.reshard_after_forward is True
            units = list(_freed_units(unwrapped)) if gathers and frees else []
            for unit in units:
                unit.set_reshard_after_forward(False, recurse=False)
            try:
                yield unwrapped
            finally:
                for unit in units:
                    unit.set_reshard_after_forward(True, recurse=False)
                    unit.reshard()


def _freed_units(model: Any) -> Iterator[FSDPModule]:
    """Yield what FSDP2 frees after its forward: layers, and embeddings that no head shares.

    accelerate keeps the norm and the head gathered until the backward pass.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, FSDPModule) and (
            isinstance(module, GradientCheckpointingLayer)
            or (module is embedding and module.weight is not head.weight)
        ):
            yield module
