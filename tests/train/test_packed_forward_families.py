"""Each architecture that the fast forward is used for, and those that it must not be used for."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from prefcli.errors import RecipeError
from prefcli.packed_forward.install import FastForward
from prefcli.packed_forward.prefix_attention import segment_attention
from prefcli.packed_forward.supported_models import FAMILIES
from prefcli.recipe.sections import Performance
from tests.support.scored_rows import OWN, assert_alike, batch_of, both, pairs, tiny


def test_every_setting_here_is_of_a_family():
    assert OWN.keys() <= FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_scores_as_trl_does(family):
    stock, fast, counts = both(tiny(family), batch_of(pairs()))
    assert_alike(stock, fast)
    assert (counts.fast, counts.stock) == (1, 0)
    # 32 + 5, 10 + 15, 12, 13, 19 instead of eight rows of 32
    assert (counts.packed, counts.padded) == (106, 256)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_to_be_sharded_is_tried_on_a_few_layers(family):
    name = "n_layer" if family in ("gpt2", "gpt_bigcode") else "num_hidden_layers"
    model = tiny(family, **({} if "layer_types" in OWN.get(family, {}) else {name: 3}))
    state = torch.get_rng_state()
    speed = FastForward(Performance(), "fsdp2", max_length=64)
    speed.prepare(model, outputs=("log_probs",))
    assert (speed.reason, speed.refused) == (None, {})
    assert torch.equal(torch.get_rng_state(), state)


UNSAFE = {
    "nemotron": {},
    "qwen3_next": {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "stablelm": {},
}
"""Recurrent, or heedless of the attention function they are given."""


def speed(choice: str = "auto") -> FastForward:
    return FastForward(Performance(shared_prefix=choice), "single", max_length=64)


def prepared(model, choice: str = "auto") -> FastForward:
    found = speed(choice)
    found.prepare(model, outputs=("log_probs",))
    return found


@pytest.mark.parametrize("family", UNSAFE)
def test_what_is_not_known_is_not_tried_and_what_is_tried_is_probed(family, monkeypatch):
    model = tiny(family, **UNSAFE[family])
    found = prepared(model)
    assert found.reason == f"{family} is not among the architectures it is known to be exact for"
    forward = model.forward
    monkeypatch.setattr("prefcli.packed_forward.supported_models.FAMILIES", FAMILIES | {family})
    found = prepared(model)
    assert "nats per token off trl's own" in found.reason or "it fails: " in found.reason
    assert model.config._attn_implementation == "sdpa"
    assert model.forward.__func__.__qualname__ == forward.__func__.__qualname__  # trl's
    with pytest.raises(RecipeError, match=r"nats per token off|it fails") as caught:
        prepared(model, "on")
    assert caught.value.problems[0].path == "performance.shared_prefix"


def test_a_wrong_layout_shows_in_fresh_weights_too(monkeypatch):
    """Whose tokens are all but equally likely, whatever is seen."""
    monkeypatch.setattr("prefcli.packed_forward.supported_models.FAMILIES", FAMILIES | {"stablelm"})
    model = AutoModelForCausalLM.from_config(tiny("stablelm").config)
    assert "nats per token off" in prepared(model).reason
    assert "nats per token off" in prepared(model.bfloat16()).reason


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("llama", {"attn": "eager"}, "model.attn_implementation is eager, and only sdpa knows"),
        ("qwen3_moe", {"output_router_logits": True}, "the experts' balancing loss counts"),
        ("gemma", {"final_logit_softcapping": 30.0}, "the logits are capped"),
    ],
)
def test_a_setting_may_speak_against_it(family, more, reason):
    attention = more.pop("attn", None)
    model = tiny(family, **more)
    if attention:
        model.set_attn_implementation(attention)
    found = prepared(model)
    assert found.reason.startswith(reason)
    assert found.lines() == [f"speed: rows are scored by trl's own forward: {found.reason}"]


def test_other_figures_and_packed_rows_are_trls():
    model = tiny("llama")
    found = speed()
    found.prepare(model, outputs=("log_probs", "log_sum_sq_probs"))
    assert found.reason == "trl asks for figures that it does not give"
    packed = FastForward(Performance(), "single", max_length=64, packs=True)
    packed.prepare(tiny("llama"), outputs=("log_probs",))
    assert packed.reason == "sft.packing leaves no padding"


def test_the_probe_leaves_no_trace():
    """Of dropout, gradients, modes, or the random numbers to come."""
    model = tiny("llama", attention_dropout=0.5)
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = prepared(model)
    assert torch.equal(torch.rand(4), expected)
    assert found.reason is None
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (found.counts.fast, found.counts.stock) == (0, 0)


@pytest.mark.parametrize("window", [8, 40])
def test_the_probe_is_longer_than_a_window_that_rows_reach(window, monkeypatch):
    """An attention that forgets the window is found out."""
    monkeypatch.setattr("prefcli.packed_forward.install.ATTENTIONS", (without_window(),))
    assert "nats per token off" in prepared(tiny("mistral", sliding_window=window)).reason
    # No row of 64 tokens reaches this one.
    assert prepared(tiny("mistral", sliding_window=64)).reason is None


def without_window() -> str:
    """The name of an attention like ours that is."""

    def blind(*args, sliding_window=None, **kwargs):
        return segment_attention(*args, **kwargs)

    AttentionInterface.register("blind", blind)
    AttentionMaskInterface.register("blind", sdpa_mask)
    return "blind"


@pytest.mark.parametrize("family", ["llama", "cohere", "mistral", "gpt2"])
def test_bfloat16_weights_pass_the_probe(family):
    """With logits as large as those of a trained model: spread over 60."""
    model = tiny(family).bfloat16()
    head = model.get_output_embeddings()
    head.weight.data.mul_(15)
    assert prepared(model).reason is None
