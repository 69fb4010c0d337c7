"""FSDP2 that multiplies in 16 bits, and sums in float32 whatever it sums."""

from __future__ import annotations

import dataclasses

import torch
from transformers import Trainer as TransformersTrainer


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
