"""Casts weights once, as autocast does in each pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


def round_projections(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the projections of a frozen model to the dtype that autocast multiplies them in.

    Products under autocast stay the same bit for bit, without a copy of the weights in each pass
    and with half their memory. Weights that an embedding shares stay as they are.
    """
    for module in projections(model):
        if module.weight.dtype == torch.float32:
            module.to(dtype)


def round_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round all weights of a frozen model to the dtype that FSDP2 casts them to in each pass.

    Its products stay the same bit for bit, with half the memory. Buffers keep their dtype, since
    FSDP2 does not cast them.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@contextmanager
def rounded_on(model: torch.nn.Module, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Hold a model on a device with its weights rounded; afterwards it is where and as it was."""
    tensors = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(device, dtype)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
        yield
    finally:
        for tensor, data in tensors:
            tensor.data = data


def projections(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Return the linear layers whose weights no embedding shares."""
    embedded = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    return [module for module in linear if module.weight not in embedded]


def keep_adapter_inputs(model: torch.nn.Module) -> None:
    """Leave the inputs of adapters in their dtype; peft casts them to float32, and autocast back.

    For models that only run under autocast. DoRA multiplies the inputs by its own scale, too.
    """
    for module in model.modules():
        dora = any(getattr(module, "use_dora", {}).values())
        if isinstance(module, BaseTunerLayer) and not dora:
            module.cast_input_dtype_enabled = False
