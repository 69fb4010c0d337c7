"""Attention over a packed row: each branch sees the beginning it shares, itself, and no other."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefcli.speed.layout import Group, Layout

NAME = "prefcli_segments"
LAYOUT = "prefcli_layout"
"""The keyword by which a model hands the layout down to its attention."""


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
    """As transformers calls it: (1, heads, tokens, width) -> (1, tokens, heads, width).

    Without a layout it is sdpa's: generation, and whatever else calls the model, stays as it is.
    """
    layout: Layout | None = kwargs.pop(LAYOUT, None)
    if layout is None:
        # sdpa reads the window from the mask.
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    times = query.size(1) // key.size(1)
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    window = sliding_window if sliding_window and sliding_window < layout.longest else None
    parts = []
    for group in layout.groups:
        parts += _group(group, layout, query, key, value, window, dropout, scaling)
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _group(
    group: Group,
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> list[torch.Tensor]:
    def attend(start: int, queries: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        seen = keys.size(2)
        plain = seen == queries and (window is None or window >= seen)
        mask = None if plain else layout.mask(queries, seen, window, query.dtype, query.device)
        return scaled_dot_product_attention(
            query[:, :, start : start + queries],
            keys,
            values,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=plain,
        )

    def part(of: torch.Tensor, start: int, tokens: int) -> torch.Tensor:
        return of[:, :, start : start + tokens]

    start, prefix = group.start, group.prefix
    before = part(key, start, prefix), part(value, start, prefix)
    parts = [attend(start, prefix, *before)] if prefix else []
    start += prefix
    for tokens in group.branches:
        if not tokens:
            continue
        own = part(key, start, tokens), part(value, start, tokens)
        if prefix:
            own = torch.cat([before[0], own[0]], 2), torch.cat([before[1], own[1]], 2)
        parts.append(attend(start, tokens, *own))
        start += tokens
    return parts


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
