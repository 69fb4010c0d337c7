"""Attention over a packed row on a GPU: one call of flash attention for all of its segments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from prefcli.packed_forward.packed_batch import Spans, reached
from prefcli.packed_forward.prefix_attention import (
    LAYOUT,
    Carrier,
    as_autocast_does,
    segment_attention,
)

NAME = "prefcli_varlen"
COMPILED = "prefcli_varlen_compiled"
"""Name of the variant that torch.compile can trace, for compiled decoder layers."""
SPANS = "prefcli_spans"
"""Keyword by which a model passes the spans to traceable attention."""

_DTYPES = (torch.bfloat16, torch.float16)
_WIDEST = 256
"""Largest width of a head."""


def is_given(model: PreTrainedModel) -> bool:
    """Return whether flash attention runs here: on an Ampere GPU or a later one."""
    if model.device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(model.device) >= (8, 0)


@cache
def asks_for_groups(kernel: Callable[..., Any]) -> bool:
    """Return whether the kernel has a flag for heads that share keys; torch 2.11 has none."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def varlen_attention(
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
    """Attend like `segment_attention`, and fall back to it where flash attention cannot run."""
    carrier: Carrier | None = kwargs.get(LAYOUT)
    if carrier is not None:
        query, key, value = as_autocast_does(query, key, value)
    if carrier is None or dropout or not _fits(query, key, value):
        return segment_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout,
            scaling,
            sliding_window,
            **kwargs,
        )
    layout = carrier.batch
    layout.calls[NAME] += 1
    return _flash(query, key, value, layout.spans, scaling, layout.reached(sliding_window)), None


def traceable_attention(
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
    """Flash attention over spans without side effects, so that torch.compile traces through it.

    Raises ValueError for what flash attention cannot compute; the self-check then falls back.
    """
    spans: Spans | None = kwargs.pop(SPANS, None)
    if spans is None:
        result: tuple[torch.Tensor, None] = segment_attention(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window, **kwargs
        )
        return result
    query, key, value = as_autocast_does(query, key, value)
    if dropout or not _fits(query, key, value):
        raise ValueError("flash attention needs 16 bits, no dropout, and heads of at most 256")
    window = reached(sliding_window, spans.longest_keys)
    return _flash(query, key, value, spans, scaling, window), None


def _fits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether flash attention takes these tensors of (1, heads, tokens, width)."""
    width = query.size(-1)
    return (
        query.dtype in _DTYPES
        and key.dtype == value.dtype == query.dtype
        and width == value.size(-1) <= _WIDEST
        and width % 8 == 0
    )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Run flash attention on (1, heads, tokens, width); returns (1, tokens, heads, width)."""
    options: dict[str, Any] = {}
    if asks_for_groups(varlen_attn):
        options["enable_gqa"] = query.size(1) != key.size(1)

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0].transpose(0, 1)[spans.keys]

    result = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        seen(key),
        seen(value),
        spans.query_ends,
        spans.key_ends,
        spans.longest_queries,
        spans.longest_keys,
        scale=scaling,
        # Queries are the last of the keys they see; a window counts the keys before each.
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    assert isinstance(result, torch.Tensor)
    return result[None]


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(COMPILED, traceable_attention)
AttentionMaskInterface.register(COMPILED, sdpa_mask)
