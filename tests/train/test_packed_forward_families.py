"""The architectures that the packed forward supports, and those that it refuses."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.masking_utils import sdpa_mask

from prefcli.errors import RecipeError
from prefcli.packed_forward.install import FastForward
from prefcli.packed_forward.prefix_attention import segment_attention
from prefcli.packed_forward.supported_models import FAMILIES
from prefcli.recipe.sections import Performance
from tests.support.scored_rows import OWN, assert_same_scores, batch_of, both, pairs, tiny


def test_own_settings_are_of_supported_families():
    assert OWN.keys() <= FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_forward_of_a_family_equals_trl(family):
    stock, fast, counts = both(tiny(family), batch_of(pairs()))
    assert_same_scores(stock, fast)
    assert (counts.fast, counts.stock) == (1, 0)
    # 32 + 5, 10 + 15, 12, 13, 19 instead of eight rows of 32
    assert (counts.packed, counts.padded) == (106, 256)


CLASSIFIERS = sorted(
    family
    for family in FAMILIES
    if CONFIG_MAPPING[family] in AutoModelForSequenceClassification._model_mapping
)


def test_most_families_have_a_reward_head():
    assert len(CLASSIFIERS) >= 25


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_packed_forward_of_a_reward_model_equals_its_own(family):
    model = tiny(family, AutoModelForSequenceClassification, num_labels=1, pad_token_id=0)
    batch = batch_of(pairs())
    del batch["labels"]

    def scores():
        model.zero_grad()
        values = model(**batch, use_cache=False).logits
        (values[:, 0] * torch.linspace(-1.0, 1.0, len(values))).sum().backward()
        return [values.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    own = scores()
    packed = speed()
    with packed.installed(model):
        assert (packed.reason, packed.refused) == (None, {})
        for one, other in zip(own, scores(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (packed.counts.packed, packed.counts.padded) == (106, 256)
    assert torch.equal(scores()[0], own[0])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_probe_of_a_sharded_family_runs_a_few_layers(family):
    name = "n_layer" if family in ("gpt2", "gpt_bigcode") else "num_hidden_layers"
    model = tiny(family, **({} if "layer_types" in OWN.get(family, {}) else {name: 3}))
    state = torch.get_rng_state()
    speed = FastForward(Performance(), "fsdp2", max_length=64)
    speed.prepare(model, outputs=("log_probs",))
    assert (speed.reason, speed.refused) == (None, {})
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_of_a_sharded_reward_model_with_an_adapter_runs_a_few_layers():
    """peft keeps a trained copy of the head next to it."""
    model = tiny("llama", AutoModelForSequenceClassification, num_labels=1, pad_token_id=0)
    get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2))
    packed = FastForward(Performance(), "fsdp2", max_length=64)
    packed.prepare(model)
    assert (packed.reason, packed.refused) == (None, {})


def test_reward_model_that_is_not_packed_has_its_own_reason():
    model = tiny("llama", AutoModelForSequenceClassification, num_labels=1, pad_token_id=None)
    packed = speed()
    packed.prepare(model)
    assert packed.reason == "it has no padding token"
    model.config.pad_token_id = 0
    model.second_head = torch.nn.Linear(2, 2)
    packed = speed()
    packed.prepare(model)
    assert packed.reason == "its head is not a layer named score"


UNSAFE = {
    "nemotron": {},
    "qwen3_next": {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "stablelm": {},
}
"""Architectures that are recurrent, or ignore the attention function."""


def speed(choice: str = "auto") -> FastForward:
    return FastForward(Performance(shared_prefix=choice), "single", max_length=64)


def prepared(model, choice: str = "auto") -> FastForward:
    packed = speed(choice)
    packed.prepare(model, outputs=("log_probs",))
    return packed


@pytest.mark.parametrize("family", UNSAFE)
def test_unknown_family_is_refused_and_a_wrong_one_fails_the_probe(family, monkeypatch):
    model = tiny(family, **UNSAFE[family])
    packed = prepared(model)
    assert packed.reason == f"it is not verified for model type {family}"
    forward = model.forward
    monkeypatch.setattr("prefcli.packed_forward.supported_models.FAMILIES", FAMILIES | {family})
    packed = prepared(model)
    assert "nats per token off trl's own" in packed.reason or "it fails: " in packed.reason
    assert model.config._attn_implementation == "sdpa"
    assert model.forward.__func__.__qualname__ == forward.__func__.__qualname__  # trl's
    with pytest.raises(RecipeError, match=r"nats per token off|it fails") as caught:
        prepared(model, "on")
    assert caught.value.problems[0].path == "performance.shared_prefix"


def test_probe_with_random_weights_detects_a_wrong_layout(monkeypatch):
    """Check random weights, whose tokens are almost equally likely in any context."""
    monkeypatch.setattr("prefcli.packed_forward.supported_models.FAMILIES", FAMILIES | {"stablelm"})
    model = AutoModelForCausalLM.from_config(tiny("stablelm").config)
    assert "nats per token off" in prepared(model).reason
    assert "nats per token off" in prepared(model.bfloat16()).reason


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"attn": "eager"}, "model.attn_implementation is eager, and it needs sdpa"),
        ("qwen3_moe", {"output_router_logits": True}, "the experts' balancing loss counts"),
        ("gemma", {"final_logit_softcapping": 30.0}, "the logits are capped"),
    ],
)
def test_prepare_with_an_unsupported_setting_falls_back_to_trl(family, options, reason):
    attention = options.pop("attn", None)
    model = tiny(family, **options)
    if attention:
        model.set_attn_implementation(attention)
    packed = prepared(model)
    assert packed.reason.startswith(reason)
    assert packed.lines() == [f"speed: rows are scored by trl's own forward: {packed.reason}"]


def test_prepare_for_other_outputs_or_packing_falls_back_to_trl():
    model = tiny("llama")
    packed = speed()
    packed.prepare(model, outputs=("log_probs", "log_sum_sq_probs"))
    assert packed.reason == "trl requests outputs that it does not compute"
    packed = FastForward(Performance(), "single", max_length=64, packs=True)
    packed.prepare(tiny("llama"), outputs=("log_probs",))
    assert packed.reason == "sft.packing leaves no padding"


def test_probe_changes_nothing():
    """Check dropout, gradients, modes and the random state."""
    model = tiny("llama", attention_dropout=0.5)
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    packed = prepared(model)
    assert torch.equal(torch.rand(4), expected)
    assert packed.reason is None
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (packed.counts.fast, packed.counts.stock) == (0, 0)


@pytest.mark.parametrize("window", [8, 40])
def test_probe_is_longer_than_a_sliding_window_that_rows_reach(window, monkeypatch):
    """Check that the probe detects an attention without the sliding window."""
    monkeypatch.setattr("prefcli.packed_forward.install.ATTENTIONS", (without_window(),))
    assert "nats per token off" in prepared(tiny("mistral", sliding_window=window)).reason
    # No row of 64 tokens reaches this one.
    assert prepared(tiny("mistral", sliding_window=64)).reason is None


def without_window() -> str:
    """Register an attention that ignores the sliding window; return its name."""

    def blind(*args, sliding_window=None, **kwargs):
        return segment_attention(*args, **kwargs)

    AttentionInterface.register("blind", blind)
    AttentionMaskInterface.register("blind", sdpa_mask)
    return "blind"


@pytest.mark.parametrize("family", ["llama", "cohere", "mistral", "gpt2"])
def test_probe_of_bfloat16_weights_passes(family):
    """Check logits with a range of 60, as large as those of a trained model."""
    model = tiny(family).bfloat16()
    head = model.get_output_embeddings()
    head.weight.data.mul_(15)
    assert prepared(model).reason is None
