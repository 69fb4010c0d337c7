"""Tiny models of many families, and batches scored by trl's own forward and by the fast one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from prefcli.packed_forward.forward import Counts, LabelForward, install
from prefcli.packed_forward.prefix_attention import NAME as SEGMENTS

FIGURES = ("log_probs", "entropy", "mean_logits", "is_top1")
VOCABULARY = 96
WINDOW = 8

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": WINDOW}
_BOTH = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2}

OWN: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**_BOTH, "logit_scale": 0.25},
    "cwm": _BOTH,
    "exaone4": _BOTH,
    "gemma3_text": {**_BOTH, "query_pre_attn_scalar": 8},
    "glm4_moe": {
        **_EXPERTS,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "granitemoe": {**_EXPERTS, "num_local_experts": 4, "logits_scaling": 2.0},
    "ministral": _BOTH,
    "mistral": _WINDOW,
    "mixtral": {**_EXPERTS, "num_local_experts": 4, **_WINDOW},
    "olmo3": _BOTH,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi3": _WINDOW,
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "starcoder2": {
        **_WINDOW,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
"""Settings that a family needs besides sizes, or that matter for these tests."""


def tiny(family: str, auto: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """Return a tiny model in training mode, with weights large enough that every token matters."""
    sizes = _GPT2 if family in ("gpt2", "gpt_bigcode") else _SIZES
    config = CONFIG_MAPPING[family](**{**sizes, **OWN.get(family, {}), **options})
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def batch_of(rows: list[tuple[list[int], list[int]]], *, left: bool = False) -> dict[str, Any]:
    """Pad rows of (tokens without labels, tokens with labels) on the right or left."""
    length = max(len(before) + len(after) for before, after in rows)

    def padded(values: list[int], fill: int) -> torch.Tensor:
        missing = length - len(values)
        return pad(torch.tensor(values), (missing, 0) if left else (0, missing), value=fill)

    return {
        "input_ids": torch.stack([padded(before + after, 0) for before, after in rows]),
        "attention_mask": torch.stack([padded([1] * len(b + a), 0) for b, a in rows]),
        "labels": torch.stack([padded([-100] * len(b) + a, -100) for b, a in rows]),
    }


def tokens(count: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=draw).tolist()


def pairs() -> list[tuple[list[int], list[int]]]:
    """Return four pairs in the order of trl, all chosen rows first.

    One is longer than the sliding window, one has an answer of one token, one has two different
    prompts, and one has two identical rows.
    """
    long, short, same = tokens(20, 1), tokens(9, 2), tokens(13, 3)
    return [
        (long, tokens(12, 4)),
        (short, tokens(1, 5)),
        (tokens(5, 6), tokens(7, 7)),
        (same, tokens(6, 8)),
        (long, tokens(5, 9)),
        (short, tokens(15, 10)),
        (tokens(6, 11), tokens(7, 12)),
        (same, tokens(6, 8)),
    ]


class Scored(NamedTuple):
    output: FusedCausalLMOutput
    gradients: dict[str, torch.Tensor]


def both(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    figures: tuple[str, ...] = FIGURES,
    *,
    autocast: bool = False,
    attention: str = SEGMENTS,
    **inputs: Any,
) -> tuple[Scored, Scored, Counts]:
    """Return the scores of trl's forward and of the packed one, and the counts of calls."""
    add_fused_lm_head(model, outputs=figures)
    stock = scored(model, batch, autocast=autocast, **inputs)
    arguments = LabelForward.of(model)
    assert arguments is not None
    counts = Counts()
    uninstall = install(model, arguments, counts, attention)
    fast = scored(model, batch, autocast=autocast, **inputs)
    uninstall()
    return stock, fast, counts


def scored(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], *, autocast: bool = False, **inputs: Any
) -> Scored:
    """Return the output and the gradients of a sum with a different random weight per token.

    autocast: run the forward pass in bfloat16 autocast, as in training.
    """
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch, **inputs, fused_lm_head=True)
    draw = torch.Generator().manual_seed(7)
    weights = torch.randn(output.log_probs.shape, generator=draw).to(output.log_probs.device)
    if output.log_probs.requires_grad:
        (output.log_probs * weights).sum().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Scored(output, gradients)


def assert_same_scores(
    stock: Scored, fast: Scored, *, nats: float = 1e-5, share: float = 1e-5
) -> None:
    """Compare two scores.

    nats: how far the metrics of a token may differ. share: how far the gradients may differ,
    relative to their norm.
    """
    for name in FIGURES:
        expected, actual = getattr(stock.output, name), getattr(fast.output, name)
        assert (expected is None) == (actual is None), name
        if expected is not None:
            assert expected.shape == actual.shape
            assert torch.allclose(actual.float(), expected.float(), rtol=0, atol=nats), name
    assert torch.equal(stock.output.label_mask, fast.output.label_mask)
    assert abs(fast.output.loss - stock.output.loss) <= 0.1 * nats * abs(stock.output.loss)
    assert stock.gradients.keys() == fast.gradients.keys()
    assert distance(stock.gradients, fast.gradients) <= share


def distance(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference, relative to that of the expected gradients."""
    if not expected:
        return 0.0
    off = torch.stack([(actual[name] - expected[name]).float().norm() for name in expected]).norm()
    length = torch.stack([value.float().norm() for value in expected.values()]).norm()
    return float(off / length) if length else float(off)
