"""Decoder layers fused by torch.compile, with a kernel of flash attention's contract for a CPU."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from prefcli.packed_forward import compiled_layers, varlen
from tests.support.scored_rows import assert_same_scores, batch_of, both, pairs, tiny


def kernel(
    query, key, value, query_ends, key_ends, longest_queries, longest_keys, *, scale, window_size
):
    """softmax(q k' scale) v, run by run, bottom-right causal; dense, so that it can be traced."""
    times = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    queries, keys = torch.arange(len(query)), torch.arange(len(key))
    query_run = torch.bucketize(queries, query_ends[1:], right=True)
    key_run = torch.bucketize(keys, key_ends[1:], right=True)
    from_end = query_ends[1:][query_run] - queries
    key_from_end = key_ends[1:][key_run] - keys
    visible = (query_run[:, None] == key_run[None]) & (key_from_end[None] >= from_end[:, None])
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


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


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_compiled_layers_give_the_log_probabilities_of_trl(family, backend):
    stock, fast, _ = both(tiny(family), batch_of(pairs()), attention=varlen.COMPILED)
    assert backend.frame_count > 0
    assert_same_scores(stock, fast)


def test_compiled_layers_other_lengths_need_no_recompilation(backend):
    model = tiny("llama")
    both(model, batch_of(pairs()), attention=varlen.COMPILED)
    compiled = backend.frame_count
    for count in (3, 2, 4):
        both(model, batch_of(pairs()[:count]), attention=varlen.COMPILED)
    assert backend.frame_count <= compiled + 1
