"""FSDP2 that multiplies in 16 bits, sums in float32, and gathers layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import PreTrainedModel
from transformers import Trainer as TransformersTrainer
from trl.models.utils import prepare_fsdp


def shard_reference(model: PreTrainedModel, accelerator: Accelerator) -> Any:
    """Shard a frozen reference as accelerate shards a policy; trl's own way takes it for one unit,
    which is moved to the device, and gathered in each pass, as a whole."""
    if accelerator.state.fsdp_plugin.fsdp_version != 2:
        return prepare_fsdp(model, accelerator)
    return fsdp2_prepare_model(accelerator, model.requires_grad_(False)).eval()


class Fsdp2Mixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Any of trl's trainers. accelerate would have gradients summed over processes in 16 bits, and
    cast what the model gives: a response of 300 tokens would be scored to 2 nats."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or plugin.fsdp_version != 2 or plugin.mixed_precision_policy is None:
            return
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
