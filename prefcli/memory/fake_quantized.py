"""A quantized linear layer without values: it has the bytes that bitsandbytes would keep."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from prefcli.model.reward_head import output_heads

BITS_PER_WEIGHT = {
    # NF4, one 8-bit scale for 64 weights, one 32-bit scale for 256 of those.
    "4bit": 4 + 8 / 64 + 32 / (64 * 256),
    "8bit": 8.0,
}


class _Product(torch.autograd.Function):
    """A product whose passes unpack the weights and do not keep them unpacked."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, out: int) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.size = (out, x.shape[-1])
        unpacked = torch.empty(ctx.size, dtype=x.dtype)
        return x @ unpacked.t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        unpacked = torch.empty(ctx.size, dtype=gradient.dtype)
        return gradient @ unpacked, None, None


class PackedLinear(torch.nn.Linear):
    """Replaces a frozen linear layer; peft accepts it as one."""

    def __init__(self, like: torch.nn.Linear, bits: Literal["4bit", "8bit"]) -> None:
        super().__init__(1, 1, bias=like.bias is not None)
        self.in_features, self.out_features = like.in_features, like.out_features
        if like.bias is not None:
            self.bias = like.bias
        size = int(like.weight.numel() * BITS_PER_WEIGHT[bits] / 8)
        if bits == "8bit":
            size += 4 * like.out_features  # one scale a row
        self.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        y: torch.Tensor = _Product.apply(x, self.weight, self.out_features)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


def pack(model: PreTrainedModel, bits: Literal["4bit", "8bit"]) -> None:
    """Replace every linear layer but the head, as bitsandbytes does."""
    heads = output_heads(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and all(module is not head for head in heads):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PackedLinear(module, bits))
