"""The packed forward on a GPU: flash attention, trl's Triton head, bfloat16."""

from __future__ import annotations

import pytest
import torch

from prefcli.packed_forward import varlen
from prefcli.packed_forward.install import FastForward
from prefcli.packed_forward.prefix_attention import NAME as SEGMENTS
from prefcli.recipe.sections import Performance
from tests.support.scored_rows import assert_same_scores, batch_of, both, pairs, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")

FAMILIES = ("llama", "mistral", "qwen2", "gemma3_text")


def _on_gpu(batch):
    return {name: values.cuda() for name, values in batch.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_forward_in_float32_equals_trl(family):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny(family).cuda()
    assert_same_scores(*both(model, _on_gpu(batch_of(pairs())), attention=SEGMENTS)[:2], share=1e-4)


@pytest.mark.parametrize("attention", [SEGMENTS, varlen.NAME])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_forward_in_bfloat16_is_as_precise_as_trl(family, attention):
    model, batch = tiny(family).cuda(), _on_gpu(batch_of(pairs()))
    if attention == varlen.NAME and not varlen.is_given(model):
        pytest.skip("no flash attention on this GPU")
    exact = both(model, batch)[0].output.log_probs
    stock, fast, counts = both(model.bfloat16(), batch, attention=attention)
    assert counts.as_dict()["attention_calls"] == {attention: model.config.num_hidden_layers}
    stock_error, fast_error = (
        (scored.output.log_probs.float() - exact).abs().mean() for scored in (stock, fast)
    )
    assert fast_error <= 1.3 * stock_error + 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_passes_the_probe(family):
    model = tiny(family).cuda()
    if not varlen.is_given(model):
        pytest.skip("no flash attention on this GPU")
    speed = FastForward(Performance(), "single", max_length=64, autocast=torch.bfloat16)
    speed.prepare(model)
    assert (speed.reason, speed.attention, speed.refused) == (None, varlen.NAME, {})
    with torch.autocast("cuda", torch.bfloat16):
        output = model(**_on_gpu(batch_of(pairs())), fused_lm_head=True)
    output.log_probs.sum().backward()
    layers = model.config.num_hidden_layers
    assert speed.as_dict()["attention_calls"] == {varlen.NAME: layers}
