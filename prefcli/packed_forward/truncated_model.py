"""The first layers of a model, for checks in one process of a model that will be sharded."""

from __future__ import annotations

import copy

import torch
from transformers import PretrainedConfig, PreTrainedModel

_WRAPPED = (".base_layer.", ".original_module.")
"""Parts of the names of weights that peft has wrapped: with an adapter, or with a trained copy."""


def of_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Return a copy of the configuration with this number of layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    full = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == full:  # what each layer is
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def truncated_model(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Return the model's first layers, embeddings and head on a device, one layer of each kind.

    It needs less memory than the model, and no other process.
    """
    config = of_depth(model.config, _depth(model.config))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        truncated: PreTrainedModel = type(model)(config)
    weights = {_plain(name): value for name, value in model.state_dict().items()}
    truncated.load_state_dict({name: weights[name] for name in truncated.state_dict()})
    return truncated.to(dtype).train(model.training)


def _plain(name: str) -> str:
    """Return the name that a weight has without peft."""
    for part in _WRAPPED:
        name = name.replace(part, ".")
    return name


def _depth(config: PretrainedConfig) -> int:
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    first = (list(kinds).index(kind) + 1 for kind in set(kinds))
    depth: int = min(max([2, *first]), text.num_hidden_layers)
    return depth
