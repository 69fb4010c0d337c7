"""Attention over a packed row: each branch attends to its shared prefix and to itself."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefcli.packed_forward.packed_batch import PackedBatch

NAME = "prefcli_segments"
LAYOUT = "prefcli_layout"
"""Keyword by which a model passes the layout to its attention."""


class Carrier:
    """A packed batch as an argument of layers. FSDP would copy a dataclass for each layer."""

    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch

    def to(self, device: torch.device, non_blocking: bool = True) -> Carrier:
        return Carrier(self.batch.to(device, non_blocking))


def as_autocast_does(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast tensors as autocast casts the arguments of torch's attention.

    Rotary embeddings turn queries and keys into float32, even if the projections return bfloat16.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend by segments: (1, heads, tokens, width) -> (1, tokens, heads, width).

    Without a layout, as in generation, it is transformers' sdpa attention.
    """
    carrier: Carrier | None = kwargs.pop(LAYOUT, None)
    if carrier is None:
        # sdpa reads the window from the mask.
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    layout = carrier.batch
    layout.calls[NAME] += 1
    query, key, value = as_autocast_does(query, key, value)
    times = query.size(1) // key.size(1)
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    window = layout.reached(sliding_window)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        queries, keys = query.size(2), key.size(2)
        causal = window is None or window >= keys
        plain = causal and keys == queries
        mask: torch.Tensor | None = None
        if causal and not plain and query.device.type == "cuda":
            # No mask in memory, and flash attention where there is one.
            mask = causal_lower_right(queries, keys)
        elif not plain:
            mask = layout.mask(queries, keys, window, query)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=plain,
        )

    # Not slices: the gradient of a slice has the size of the sliced tensor, and is mostly zeros.
    tokens = [count for group in layout.groups for count in (group.prefix, *group.branches)]
    split = (torch.split(tensor, tokens, dim=2) for tensor in (query, key, value))
    segments = zip(*split, strict=True)
    parts = []
    for group in layout.groups:
        start, *before = next(segments)
        if group.prefix:
            parts.append(attend(start, *before))
        for _ in group.branches:
            branch, *own = next(segments)
            if group.prefix:
                own = [torch.cat(both, 2) for both in zip(before, own, strict=True)]
            if branch.size(2):
                parts.append(attend(branch, *own))
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
