"""Models that have shapes but no weights, built from their configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from prefcli.memory.fake_quantized import pack
from prefcli.methods import Method
from prefcli.model import Device
from prefcli.model.loading import AUTO_CLASSES
from prefcli.model.lora import trainable_config
from prefcli.model.parts import freeze_towers
from prefcli.model.precision import keep_adapter_inputs, round_projections
from prefcli.model.remote_code import from_config_kwargs
from prefcli.packed_forward.truncated_model import of_depth
from prefcli.recipe.schema import Recipe


@dataclass(frozen=True)
class Architectures:
    """The configs of policy and reference."""

    policy: PretrainedConfig
    adapter: LoraConfig | None = None
    """The adapter to continue, if model.adapter is continue."""
    reference: PretrainedConfig | None = None
    """A reference that is not the starting policy."""

    def of_depth(self, layers: int) -> Architectures:
        """Return the same architectures with another number of layers."""
        other = of_depth(self.reference, layers) if self.reference is not None else None
        return Architectures(of_depth(self.policy, layers), self.adapter, other)


def make_policy(recipe: Recipe, architectures: Architectures, device: Device) -> Any:
    """Build the policy, with the adapter that it continues."""
    model = model_without_weights(recipe, architectures.policy, device)
    if recipe.model.quantization is not None:
        pack(model, recipe.model.quantization)
        model.is_loaded_in_4bit = recipe.model.quantization == "4bit"
        model.is_loaded_in_8bit = recipe.model.quantization == "8bit"
    if not recipe.trains_adapter:
        freeze_towers(model)
    if recipe.model.adapter != "continue":
        return model
    assert architectures.adapter is not None
    return get_peft_model(model, trainable_config(architectures.adapter))


def make_reference(
    recipe: Recipe, method: Method, architectures: Architectures, device: Device
) -> PreTrainedModel | None:
    """Build the separate reference model, if `_reference` in training/trainer.py loads one."""
    if not method.needs_reference:
        return None
    if architectures.reference is None and recipe.trains_adapter:
        return None
    config = architectures.reference or architectures.policy
    model = model_without_weights(recipe, config, device)
    cast = device.autocast_to(recipe.model)
    if cast is not None:
        round_projections(model, cast)
    return model


def model_without_weights(
    recipe: Recipe, config: PretrainedConfig, device: Device
) -> PreTrainedModel:
    """Build a model in the dtype of the policy."""
    # Attention that needs a GPU takes about as much memory as sdpa.
    eager = recipe.model.attn_implementation == "eager"
    # Some initializations read their values, which fake tensors do not have.
    with no_init_weights():
        model: PreTrainedModel = AUTO_CLASSES[recipe.model.head].from_config(
            config,
            dtype=device.dtype(recipe.model, frozen=recipe.trains_adapter),
            **from_config_kwargs(config, recipe.model),
            **({"attn_implementation": "eager"} if eager else {}),
        )
        model.tie_weights()  # transformers ties them when it initializes them
    return model


def compute_as_on(model: torch.nn.Module, recipe: Recipe, device: Device) -> None:
    """Let a policy keep for its backward pass what it keeps on `device`.

    Under autocast a run leaves the inputs of adapters in their dtype.
    """
    if device.autocast_to(recipe.model) is not None:
        keep_adapter_inputs(model)
    if device.kind == "cuda":
        for module in model.modules():
            if type(module) is torch.nn.Dropout:
                module.__class__ = _FusedDropout


class _FusedDropout(torch.nn.Dropout):
    """Dropout of a GPU: its mask takes a byte per value; a CPU's has the dtype of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = torch.native_dropout(input, self.p, self.training)[0]
        return dropped
