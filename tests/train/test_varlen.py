"""The arguments of flash attention, checked by a kernel with the same contract on a CPU.

tests/gpu/test_speed.py checks torch's kernel itself.
"""

from __future__ import annotations

import functools

import pytest
import torch

from prefcli.packed_forward import install, varlen
from prefcli.packed_forward.install import FastForward
from prefcli.packed_forward.prefix_attention import NAME as SEGMENTS
from tests.support.scored_rows import assert_same_scores, batch_of, both, pairs, tiny, tokens


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_queries: int,
    longest_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """Return softmax(q k' scale) v of each sequence, with causal attention aligned to the end.

    A query sees at most `window_size[0]` keys before its own.
    """
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa == (query.size(1) != key.size(1))
    assert window_size[1] == 0
    times = query.size(1) // key.size(1)
    key, value = (heads.repeat_interleave(times, 1) for heads in (key, value))
    scale = query.size(-1) ** -0.5 if scale is None else scale
    lengths = [ends.diff().tolist() for ends in (query_ends, key_ends)]
    assert [longest_queries, longest_keys] == [max(runs) for runs in lengths]
    parts = []
    split = zip(
        query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True
    )
    for q, k, v in split:
        at = torch.arange(len(k) - len(q), len(k))[:, None]
        before = at - torch.arange(len(k))[None]
        seen = before >= 0
        if window_size[0] >= 0:
            seen &= before <= window_size[0]
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", shares, v))
    return torch.cat(parts)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Replace flash attention by `kernel`; return the shapes of its calls."""
    calls = []

    @functools.wraps(kernel)
    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(varlen, "_DTYPES", (torch.float32,))
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "gemma3_text", "granite"])
def test_varlen_with_one_call_per_layer_equals_trl(family, checkpointing, on_a_cpu):
    model = tiny(family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    stock, fast, _ = both(model, batch_of(pairs()), attention=varlen.NAME)
    assert_same_scores(stock, fast)
    assert len(on_a_cpu) == model.config.num_hidden_layers * (1 + checkpointing)


@pytest.mark.parametrize(
    "rows",
    [
        [([3, 4], [5]), ([6, 4], [5])],
        [([3], [4]), ([3], [4, 5, 6])],
        [([3, 4], [5, 6])] * 2,
        [(tokens(9, 1), tokens(5, 2)), (tokens(9, 1), tokens(4, 3)), (tokens(9, 1), tokens(7, 4))],
    ],
    ids=["nothing shared", "one continues", "identical", "three answers"],
)
def test_varlen_of_rows_with_any_common_prefix_equals_trl(rows, on_a_cpu):
    assert_same_scores(*both(tiny("mistral"), batch_of(rows), attention=varlen.NAME)[:2])
    assert on_a_cpu


def test_varlen_in_float32_falls_back_to_segments(monkeypatch):
    def none(*args, **kwargs):
        raise AssertionError("float32")

    monkeypatch.setattr(varlen, "varlen_attn", none)
    assert_same_scores(*both(tiny("llama"), batch_of(pairs()), attention=varlen.NAME)[:2])


@functools.wraps(kernel)
def wrong(*args, **kwargs):
    return kernel(*args, **{**kwargs, "window_size": (0, 0)})


def failing(*args, **kwargs):
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("there", [kernel, wrong, failing])
def test_the_probe_takes_the_first_attention_that_agrees(there, on_a_cpu, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", there)
    monkeypatch.setattr(install.varlen, "is_given", lambda model: True)
    speed = FastForward(install.Performance(), "single", max_length=64)
    speed.prepare(tiny("llama"))
    assert speed.reason is None
    assert speed.attention == (varlen.NAME if there is kernel else SEGMENTS)
    assert speed.as_dict()["attention"] == speed.attention


@pytest.fixture
def kernel_calls(monkeypatch):
    """Shapes that the kernel is called with; it takes what torch's takes."""
    calls = []

    @functools.wraps(kernel)
    def counted(*args, **kwargs):
        assert args[0].dtype == args[1].dtype == args[2].dtype == torch.bfloat16
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "gemma3_text"])
def test_varlen_under_autocast_is_called_for_each_layer(family, dtype, kernel_calls):
    """Rotary embeddings make queries and keys float32 where weights are."""
    model = tiny(family).to(dtype)
    stock, fast, counts = both(model, batch_of(pairs()), attention=varlen.NAME, autocast=True)
    layers = model.config.num_hidden_layers
    assert len(kernel_calls) == layers
    assert counts.as_dict()["attention_calls"] == {varlen.NAME: layers}
    off = (fast.output.log_probs - stock.output.log_probs).abs().mean()
    assert off < 0.05


def test_counts_of_the_segment_attention_are_its_own():
    counts = both(tiny("llama"), batch_of(pairs()))[2]
    assert counts.as_dict()["attention_calls"] == {SEGMENTS: 2}


def of_torch_2_11(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    """Accept the signature of torch 2.11, which has no flag for grouped heads."""
    return kernel(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        scale=scale,
        window_size=window_size,
        enable_gqa=query.size(1) != key.size(1),
    )


def test_probe_takes_varlen_of_torch_2_11(on_a_cpu, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", of_torch_2_11)
    monkeypatch.setattr(install.varlen, "is_given", lambda model: True)
    speed = FastForward(install.Performance(), "single", max_length=64)
    speed.prepare(tiny("llama"))
    assert (speed.reason, speed.attention) == (None, varlen.NAME)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output):
        return output.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("head dimension 256 has no backward pass here")


@functools.wraps(kernel)
def no_backward(*args, **kwargs):
    return _NoBackward.apply(kernel(*args, **kwargs))


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (failing, "it fails: RuntimeError: no kernel image is available"),
        (
            no_backward,
            "its backward pass fails: RuntimeError: head dimension 256 has no backward pass here",
        ),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_probe_records_the_attention_it_refuses(there, why, trained, on_a_cpu, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", there)
    monkeypatch.setattr(install.varlen, "is_given", lambda model: True)
    model = tiny("llama").requires_grad_(trained)
    speed = FastForward(install.Performance(), "single", max_length=64)
    speed.prepare(model)
    assert speed.attention == SEGMENTS
    assert speed.as_dict()["refused"] == {varlen.NAME: why}
    assert speed.lines() == [
        "speed: rows are scored without padding, and a shared prompt only once",
        f"speed: attention is {SEGMENTS}; {varlen.NAME} is not used: {why}",
    ]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attentions_on_a_cpu_are_segments_only():
    assert not varlen.is_given(tiny("llama"))
    assert install.attentions(tiny("llama")) == [SEGMENTS]
