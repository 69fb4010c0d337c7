"""The packed forward compared with trl's: batches, precisions, adapters, checkpointing."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from prefcli.packed_forward.chunked_lm_head import Head, label_outputs
from prefcli.packed_forward.forward import Counts, LabelForward, install
from prefcli.packed_forward.prefix_attention import LAYOUT, Carrier
from prefcli.packed_forward.prefix_attention import NAME as SEGMENTS
from tests.support.scored_rows import (
    FIGURES,
    assert_same_scores,
    batch_of,
    both,
    distance,
    pairs,
    scored,
    tiny,
    tokens,
)

SYSTEM = tokens(14, 1)
BATCHES = {
    "nothing in common": [(tokens(5, 2), tokens(4, 3)), (tokens(7, 4), tokens(3, 5))],
    "identical": [(tokens(5, 2), tokens(4, 3))] * 2,
    "one token each": [(tokens(9, 2), tokens(1, 3)), (tokens(9, 2), tokens(1, 4))],
    "one continues the other": [
        (tokens(9, 2), tokens(12, 3)[:4]),
        (tokens(9, 2), tokens(12, 3)),
    ],
    "a system prompt that all share": [
        (SYSTEM + tokens(6, 2), tokens(5, 3)),
        (SYSTEM + tokens(11, 4), tokens(2, 5)),
        (SYSTEM + tokens(6, 2), tokens(3, 6)),
        (SYSTEM + tokens(11, 4), tokens(9, 7)),
    ],
    "answers to one prompt": [(tokens(12, 2), tokens(3 + n, n)) for n in range(4, 8)],
    "whole texts": [([], tokens(9, 2)), ([], tokens(5, 2) + tokens(6, 3)), ([], tokens(1, 4))],
    "one row without a label": [(tokens(8, 2), []), (tokens(8, 2), tokens(5, 3))],
    "no label": [(tokens(8, 2), []), (tokens(6, 3), [])],
    "no prompt and one token": [([], tokens(1, 2))],
}


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request):
    """Return a model; the sliding window of mistral is shorter than most rows."""
    return tiny(request.param)


@pytest.mark.parametrize("name", BATCHES)
def test_packed_forward_of_edge_case_batches_equals_trl(model, name):
    assert_same_scores(*both(model, batch_of(BATCHES[name]))[:2])


def test_packed_forward_with_left_padding_equals_trl(model):
    assert_same_scores(*both(model, batch_of(pairs(), left=True))[:2])


def test_packed_forward_of_labels_with_gaps_equals_trl(model):
    """Check a conversation that is trained on its assistant turns only."""
    batch = batch_of(pairs())
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    batch["labels"][:, 4:9] = -100
    batch["labels"][:, 17:20] = -100
    assert_same_scores(*both(model, batch)[:2])


def test_packed_forward_loss_is_divided_by_num_items_in_batch(model):
    batch = batch_of(pairs())
    stock, fast, _ = both(model, batch, num_items_in_batch=torch.tensor(50))
    assert_same_scores(stock, fast)
    torch.testing.assert_close(fast.output.loss, -fast.output.log_probs.sum() / 50)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("phi", {}),  # whose head has a bias
        ("cohere", {"tie_word_embeddings": True}),  # whose logits are scaled
    ],
)
def test_lm_head_over_many_tiles_equals_trl(family, options, monkeypatch):
    monkeypatch.setattr("prefcli.packed_forward.chunked_lm_head._TILE", 1)  # sixteen labels each
    model = tiny(family, **options)
    stock, fast, _ = both(model, batch_of(pairs()))
    assert_same_scores(stock, fast)
    if options:  # the embeddings have their gradient from both ends
        name = "model.embed_tokens.weight"
        assert distance({"": stock.gradients[name]}, {"": fast.gradients[name]}) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_forward_of_a_collated_layout_that_is_filled_up_equals_trl(family):
    """Check a row of a multiple of 64 tokens, as GPUs get it, whose layout comes with the batch."""
    model, batch = tiny(family), batch_of(pairs())
    add_fused_lm_head(model, outputs=FIGURES)
    stock, counts = scored(model, batch), Counts(multiple=64)
    install(model, LabelForward.of(model), counts, SEGMENTS)
    layout = counts.pack(batch["input_ids"], batch["attention_mask"], batch["labels"])
    fast = scored(model, {**batch, LAYOUT: Carrier(layout).to(torch.device("cpu"))})
    assert_same_scores(stock, fast)
    assert counts.packed == layout.size == 64 * (layout.size // 64) > counts.pack(**batch).longest
    assert layout.groups[-1].branches == ()


def adapted():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(tiny("llama"), config)


def test_packed_forward_under_an_adapter_is_used():
    """Check the arguments of peft, which passes all of them, most as None."""
    wrapped = adapted()
    base = wrapped.get_base_model()
    batch = batch_of(pairs())
    stock, fast, counts = both_under(wrapped, base, batch)
    assert (counts.fast, counts.stock) == (1, 0)
    assert_same_scores(stock, fast)
    assert all("lora" in name for name in fast.gradients)


def both_under(wrapped, base, batch):
    add_fused_lm_head(base, outputs=FIGURES)
    stock = scored(wrapped, batch)
    counts = Counts()
    install(base, LabelForward.of(base), counts, SEGMENTS)
    return stock, scored(wrapped, batch), counts


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_packed_forward_with_gradient_checkpointing_is_equal(family, reentrant):
    """Check the recomputation in the backward pass, which needs the layout of the batch."""
    model, batch = tiny(family), batch_of(pairs())
    plain = both(model, batch)[1]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = both(model, batch)
    assert_same_scores(*again[:2])
    assert_same_scores(plain, again[1])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_packed_forward_under_autocast_is_as_precise_as_trl(family, frozen):
    """Compare the errors relative to float32, in the forward and the backward pass."""
    model, batch = tiny(family), batch_of(pairs())
    model.get_output_embeddings().requires_grad_(not frozen)
    exact = both(model, batch)[0]
    stock, fast, _ = both(model, batch, autocast=True)
    for name in ("log_probs", "entropy", "mean_logits"):
        right, slow, packed = (getattr(run.output, name) for run in (exact, stock, fast))
        assert packed.dtype == slow.dtype == torch.float32
        assert (packed - right).abs().mean() <= 1.3 * (slow - right).abs().mean() + 1e-4, name
    assert {n: g.dtype for n, g in fast.gradients.items()} == {
        n: g.dtype for n, g in stock.gradients.items()
    }
    assert distance(exact.gradients, fast.gradients) <= 1.3 * distance(
        exact.gradients, stock.gradients
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_lm_head_under_autocast_equals_bfloat16_weights(frozen):
    """Check that the backward pass, outside autocast, uses the logits of the forward pass.

    Logits of 60 are 0.25 apart in bfloat16.
    """
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=draw), 4 * torch.randn(96, 16, generator=draw)
    targets = torch.randint(0, 96, (40,), generator=draw)
    results = []
    for half in (False, True):
        states = hidden.bfloat16() if half else hidden.clone()
        head = weight.bfloat16() if half else weight.clone()
        states.requires_grad_()
        head.requires_grad_(not frozen)
        with torch.autocast("cpu", torch.bfloat16, enabled=not half):
            scores = Head.apply(states, head, None, targets, 1.0, FIGURES)
        scores[0].sum().backward()
        results.append((scores, {"hidden": states.grad, "weight": None if frozen else head.grad}))
    (under, gradients), (halved, rounded) = results
    for expected, actual in zip(halved, under, strict=True):
        assert torch.equal(expected, actual)
    for name in ("hidden",) if frozen else ("hidden", "weight"):
        assert distance({"": gradients[name]}, {"": rounded[name].float()}) < 4e-3  # half of 2**-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True])
def test_lm_head_in_half_precision_is_close_to_float64(dtype, frozen):
    """Compare with float64, relative to the rounding of the inputs' dtype."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(96, 16, generator=draw).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(0, 96, (40,), generator=draw)
    amounts = 1e-3 * torch.randn(40, generator=draw)
    log_probs, entropy, mean, _ = Head.apply(hidden, weight, None, targets, 0.5, FIGURES)
    (log_probs * amounts).sum().backward()
    double, heavy = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = 0.5 * double @ heavy.T
    right = logits.log_softmax(-1)
    chosen = right.gather(1, targets[:, None]).squeeze(1)
    (chosen * amounts).sum().backward()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(log_probs.double(), chosen, rtol=0, atol=8 * eps)
    torch.testing.assert_close(
        entropy.double(), -(right.exp() * right).sum(1), rtol=0, atol=8 * eps
    )
    torch.testing.assert_close(mean.double(), logits.mean(1), rtol=0, atol=eps)
    assert distance({"": double.grad}, {"": hidden.grad}) <= 2 * eps
    if not frozen:
        assert distance({"": heavy.grad}, {"": weight.grad}) <= 2 * eps


def test_install_does_not_change_generation_or_saved_config(tmp_path):
    model = tiny("mistral").eval()
    prompt = batch_of([(tokens(20, 1), []), (tokens(11, 2), [])], left=True)
    given = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    before = model.generate(**given, max_new_tokens=12, do_sample=False)
    with torch.no_grad():
        logits = model(**given).logits
    both(model, batch_of(pairs()))
    install(model, LabelForward.of(model), Counts(), SEGMENTS)
    assert torch.equal(model.generate(**given, max_new_tokens=12, do_sample=False), before)
    with torch.no_grad():
        assert torch.equal(model(**given).logits, logits)
    model.save_pretrained(tmp_path)
    assert "prefcli" not in (tmp_path / "config.json").read_text("utf-8")
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["model_type"] == "mistral"


def test_packed_forward_with_other_arguments_falls_back_to_trl():
    model, batch = tiny("llama"), batch_of(pairs())
    positions = torch.arange(batch["input_ids"].size(1))[None]
    stock, fast, counts = both(model, batch, position_ids=positions)
    assert (counts.fast, counts.stock) == (0, 1)
    assert torch.equal(stock.output.log_probs, fast.output.log_probs)


def test_layout_is_cached_for_the_same_batch_only():
    """Check that the reference reuses the layout, and other masks or labels do not."""
    batch = batch_of(pairs())
    counts = Counts()
    first = counts.layout(**batch)
    assert counts.layout(**batch) is first
    shorter = batch["attention_mask"].clone()
    shorter[0, 20:] = 0
    assert counts.layout(batch["input_ids"], shorter, batch["labels"]).size < first.size
    assert (counts.fast, counts.stock) == (3, 0)


def test_token_metrics_of_the_triton_head_equal_the_chunked_head(monkeypatch):
    """Run the Triton head of GPUs on a CPU, where torch computes its tiles."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 20)
    hidden, targets = torch.randn(7, 8), torch.randint(0, 20, (7,))
    packed = label_outputs(hidden, head, targets, 0.5, FIGURES)
    monkeypatch.setattr("prefcli.packed_forward.chunked_lm_head._use_triton", lambda device: True)
    stock = label_outputs(hidden, head, targets, 0.5, FIGURES)
    for one, other in zip(packed, stock, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6)
