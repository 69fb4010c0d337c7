"""DDP that keeps gradients once; FSDP2 that sums in float32, gathers layer by layer, and shards
the gradients of each micro-batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import PreTrainedModel
from transformers import Trainer as TransformersTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp


def shard_reference(model: PreTrainedModel, accelerator: Accelerator) -> Any:
    """Shard a frozen reference as accelerate shards a policy; trl's own way takes it for one unit,
    which is moved to the device, and gathered in each pass, as a whole."""
    if accelerator.state.fsdp_plugin.fsdp_version != 2:
        return prepare_fsdp(model, accelerator)
    return fsdp2_prepare_model(accelerator, model.requires_grad_(False)).eval()


def prepare_reference(model: PreTrainedModel, accelerator: Accelerator) -> Any:
    """Place or shard a frozen reference as trl's trainers do."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(model, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        return shard_reference(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


class DistributedMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Sets what accelerate's options for DDP and FSDP2 leave to their defaults.

    DDP would hold each gradient twice, by itself and in a bucket. FSDP2 would sum gradients over
    processes in 16 bits and cast the model's outputs to them, so that the log-probability of a
    response of 300 tokens would be rounded to 2 nats. FSDP would hold the gradients of all weights
    on each device until the last micro-batch of a step; now each micro-batch is summed up, and each
    device keeps its share.
    """

    def _wrap_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._wrap_model(*args, **kwargs)
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        return model

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        if plugin is None or plugin.fsdp_version != 2 or plugin.mixed_precision_policy is None:
            return
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
