"""The cheap estimate of a step's memory without gradient checkpointing: an upper bound.

`training.gradient_checkpointing: auto` needs it before a trainer exists: every row counts as long
as the longest. A dry-run measures the step itself (fake_step.py), with the same bytes per quantized
weight and per optimizer state.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import PretrainedConfig
from trl.kernels import chunked_logprob

from prefcli.data.run_datasets import mixed_rows
from prefcli.memory.fake_models import compute_as_on, model_without_weights
from prefcli.memory.fake_quantized import BITS_PER_WEIGHT
from prefcli.memory.optimizer_state_size import BITSANDBYTES, on_device, on_disk
from prefcli.methods import Method
from prefcli.model import Device, count_parameters, lora_config
from prefcli.model.lora import trainable_config
from prefcli.model.parts import freeze_towers
from prefcli.model.peft_wrapper import base_of
from prefcli.model.precision import projections
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_compat import LOGPROB_TILE_COLUMNS, modules_moved_by

_WHOLE = 16
"""Bytes per logit if the loss needs all of them at once."""
_TILED = {"cuda": 1, "cpu": 8}
"""Tiles that trl's head holds at once; prefcli's own head needs less."""


@dataclass(frozen=True)
class Policy:
    """The policy without its weights."""

    config: PretrainedConfig
    adapter: LoraConfig | None = None
    """The adapter to continue, if model.adapter is continue."""


def estimate_activation_memory(
    recipe: Recipe,
    method: Method,
    machine: Device,
    policy: Policy,
    *,
    length: int,
    reference: int,
    packed: int | None = None,
) -> int:
    """Bytes at the peak of the backward pass.

    length: tokens of the longest row. reference: parameters of a separate reference model.
    packed: tokens of the largest micro-batch where it is one row without padding.
    """
    rows = _rows(recipe, method)
    if packed is not None:
        rows, length = 1, packed
    dtype = machine.dtype(recipe.model, frozen=recipe.trains_adapter)
    half = machine.autocast(recipe.model) or machine.half(recipe.model)
    with (
        warnings.catch_warnings(action="ignore"),  # peft copies layers that it trains whole
        torch.random.fork_rng(devices=[]),
        FakeTensorMode(allow_non_fake_inputs=True),
        modules_moved_by(to_type),
    ):
        model = _model(recipe, policy, machine)
        parameters, trained = count_parameters(model)
        # A reference of this architecture keeps its projections in the dtype of autocast.
        halved = (
            sum(p.numel() for layer in projections(model) for p in layer.parameters()) / parameters
        )
        saved = _saved_bytes(model, rows, length, half=half, padded=packed is None)
    frozen = _bytes_of_frozen(recipe, dtype)
    # As the recipe has it, an adapter is trained in float32 on whatever lies below it.
    own = 4 if recipe.trains_adapter and recipe.model.dtype != "bfloat16" else dtype.itemsize
    optim = recipe.training.optim
    states = (
        on_device(optim, trained, 0)
        if optim in BITSANDBYTES
        else on_disk(optim, trained) * own // 4
    )
    logits: int
    beside = frozen - 2 * halved if half and frozen == 4 else frozen
    weights = int(frozen * (parameters - trained)) + own * trained
    if method.head == "reward":
        logits = 0
    elif method.trainer.concatenates_forward and packed is None:
        logits = _WHOLE * rows * length * policy.config.get_text_config().vocab_size
    else:
        tokens: int = min(rows * length, chunked_logprob.TOKEN_CHUNK_SIZE)
        tile: int = tokens * LOGPROB_TILE_COLUMNS * (2 if half else 4)
        logits = _TILED[machine.kind] * tile
    total: int = weights + own * trained + states + int(beside * reference) + saved + logits
    return total


def _bytes_of_frozen(recipe: Recipe, dtype: torch.dtype) -> float:
    quantization = recipe.model.quantization
    return dtype.itemsize if quantization is None else BITS_PER_WEIGHT[quantization] / 8


def _rows(recipe: Recipe, method: Method) -> int:
    """Count the rows of a forward pass with gradients."""
    batch = recipe.training.train_batch_size
    return (2 if method.rows == "pair" else 1) * batch + mixed_rows(recipe, method)


def _model(recipe: Recipe, policy: Policy, machine: Device) -> Any:
    model: Any = model_without_weights(recipe, policy.config, machine)
    if not recipe.trains_adapter:
        freeze_towers(model)
    if recipe.lora is not None:
        model = get_peft_model(model, lora_config(recipe.lora, model))
    elif policy.adapter:
        model = get_peft_model(model, trainable_config(policy.adapter))
    compute_as_on(model, recipe, machine)
    return model


def to_type(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """Module.to for fake parameters, which torch can't swap, and which need no other device."""
    _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if dtype is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    return module


def _saved_bytes(model: Any, rows: int, length: int, *, half: bool, padded: bool) -> int:
    """Count the bytes that the layers save for their backward pass, without the weights.

    padded: use a mask of all pairs of tokens.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            alive.append(storage)  # or its number would be given to the next
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    model.train()
    ids = torch.zeros(rows, length, dtype=torch.long)
    base = base_of(model)
    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        # Four dimensions pass transformers' own masks untouched, as in the packed forward.
        mask = torch.ones_like(ids) if padded else torch.zeros(1, 1, 1, 1)
        base.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(sizes.values())
