"""Decoder layers fused by torch.compile, with a stand-in for flash attention on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from prefcli.packed_forward import compiled_layers, varlen
from tests.support.scored_rows import assert_same_scores, batch_of, both, pairs, tiny


def weights_of(
    query: Tensor, key: Tensor, query_ends: Tensor, key_ends: Tensor, scale: float
) -> Tensor:
    """softmax(q k' scale), run by run, bottom-right causal: (heads, queries, keys)."""
    queries, keys = torch.arange(len(query)), torch.arange(len(key))
    query_run = torch.bucketize(queries, query_ends[1:], right=True)
    key_run = torch.bucketize(keys, key_ends[1:], right=True)
    from_end = query_ends[1:][query_run] - queries
    key_from_end = key_ends[1:][key_run] - keys
    visible = (query_run[:, None] == key_run[None]) & (key_from_end[None] >= from_end[:, None])
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


# An operator, as torch's kernel is: the compiler does not trace into it.
@torch.library.custom_op("prefcli_tests::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, scale: float
) -> Tensor:
    weights = weights_of(query, key, query_ends, key_ends, scale)
    return torch.einsum("hqk,khd->qhd", weights, value).contiguous()


@torch.library.custom_op("prefcli_tests::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    scale: float,
) -> list[Tensor]:
    weights = weights_of(query, key, query_ends, key_ends, scale)
    to_weights = torch.einsum("qhd,khd->hqk", grad, value)
    to_scores = scale * weights * (to_weights - (to_weights * weights).sum(-1, keepdim=True))
    gradients = (
        torch.einsum("hqk,khd->qhd", to_scores, key),
        torch.einsum("hqk,qhd->khd", to_scores, query),
        torch.einsum("hqk,qhd->khd", weights, grad),
    )
    return [gradient.contiguous() for gradient in gradients]


@attention.register_fake
def _(query, key, value, query_ends, key_ends, scale):
    return torch.empty_like(query)


@attention_backward.register_fake
def _(grad, query, key, value, query_ends, key_ends, scale):
    return [torch.empty_like(tensor) for tensor in (query, key, value)]


def save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def backward(ctx, grad):
    return (*attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None)


attention.register_autograd(backward, setup_context=save)


def kernel(
    query, key, value, query_ends, key_ends, longest_queries, longest_keys, *, scale, window_size
):
    times = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return attention(query, key, value, query_ends, key_ends, scale)


@pytest.fixture
def backend(monkeypatch):
    """Flash attention's stand-in, and a compiler that counts the graphs it is given."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "_DTYPES", (torch.float32,))
    monkeypatch.setattr(compiled_layers, "BACKEND", counter)
    yield counter
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_layers_give_trls_scores_for_any_lengths_without_recompilation(backend):
    model = tiny("qwen2")  # llama's layer, with biases
    compiled = []
    for count in (8, 6, 7):
        stock, fast, _ = both(model, batch_of(pairs()[:count]), attention=varlen.COMPILED)
        assert_same_scores(stock, fast)
        compiled.append(backend.frame_count)
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}
