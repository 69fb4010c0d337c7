"""trl's forward pass with a fused head, computed on a packed row: same arguments and results."""

from __future__ import annotations

import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from prefcli.packed_forward.chunked_lm_head import (
    EVERYWHERE,
    SUPPORTED_OUTPUTS,
    gathered,
    label_outputs,
)
from prefcli.packed_forward.compiled_layers import CompiledLayers
from prefcli.packed_forward.packed_batch import PackedBatch, layout_of
from prefcli.packed_forward.prefix_attention import LAYOUT, Carrier
from prefcli.packed_forward.varlen import COMPILED, SPANS

_READ = {"input_ids", "attention_mask", "labels", "num_items_in_batch", "use_cache"}
_FROM_TRL = (
    "logit_scale",
    "outputs",
    "temperature",
    "final_logit_softcapping",
    "cast_lm_head_to_fp32",
)


@dataclass
class Counts:
    """Numbers of passes and tokens of a run, by the kind of forward pass, for run.json."""

    multiple: int = 1
    """Packed rows are filled up to a multiple of this many tokens."""
    fast: int = 0
    stock: int = 0
    packed: int = 0
    """Tokens of the packed rows."""
    padded: int = 0
    """Tokens of the same batches with padding and repeated prompts."""
    attention: Counter[str] = field(default_factory=Counter)
    """Calls of each attention function by a layer; a recomputed layer calls it again."""
    _last: tuple[tuple[torch.Tensor | None, ...], PackedBatch] | None = field(
        default=None, repr=False
    )

    def pack(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
    ) -> PackedBatch:
        """Lay out a batch; on a GPU the host waits for its tensors."""
        return layout_of(input_ids, attention_mask, labels, self.attention, self.multiple)

    def layout(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        collated: Carrier | None = None,
    ) -> PackedBatch:
        """Return the layout of a batch; the reference reads the batch of the policy.

        collated: the layout that the collator has made.
        """
        batch = input_ids, attention_mask, labels
        if collated is not None:
            layout = collated.batch.to(input_ids.device)
            assert layout.place.shape == input_ids.shape, "the layout is that of another batch"
        else:
            last = self._last
            if last is None or any(a is not b for a, b in zip(last[0], batch, strict=True)):
                last = self._last = batch, self.pack(*batch)
            layout = last[1]
        self.fast += 1
        self.packed += layout.size
        self.padded += input_ids.numel()
        return layout

    def as_dict(self) -> dict[str, Any]:
        return {
            "fast_calls": self.fast,
            "stock_calls": self.stock,
            "tokens": self.packed,
            "tokens_padded": self.padded,
            "attention_calls": dict(self.attention),
        }


def settings(model: PreTrainedModel) -> tuple[float, tuple[str, ...]] | None:
    """Return (scale of the logits, requested outputs) of a model that trl has prepared.

    None if trl requests something that the packed forward does not compute.
    """
    known = inspect.getclosurevars(model.forward).nonlocals
    if not set(_FROM_TRL) <= known.keys():
        return None
    scale, outputs, temperature, cap, precise = (known[name] for name in _FROM_TRL)
    if cap is not None or precise or not set(outputs) <= SUPPORTED_OUTPUTS:
        return None
    return scale / temperature, outputs


def install(
    model: PreTrainedModel,
    scale: float,
    outputs: tuple[str, ...],
    counts: Counts,
    attention: str,
) -> Callable[[], None]:
    """Replace trl's forward pass by the packed one. Returns a function that restores it.

    model: without peft's wrapper. attention: one of `ATTENTIONS`. Tokens that rows share get one
    draw of dropout, while trl draws for each row.
    """
    stock, before = model.forward, model.config._attn_implementation

    @functools.wraps(stock)
    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any
    ) -> Any:
        collated = kwargs.pop(LAYOUT, None)
        if not fused_lm_head:
            with compiled.paused():
                return stock(*args, **kwargs)
        given = {name for name, value in kwargs.items() if value is not None}
        if args or not given <= _READ:
            counts.stock += 1
            with compiled.paused():
                return stock(*args, fused_lm_head=True, **kwargs)
        labels = kwargs["labels"]
        layout = counts.layout(kwargs["input_ids"], kwargs.get("attention_mask"), labels, collated)
        items = kwargs.get("num_items_in_batch")
        counts.attention[attention] += len(compiled.layers)
        return score(self, kwargs["input_ids"], labels, layout, items, scale, outputs)

    compiled = CompiledLayers(model if attention == COMPILED else None)

    def uninstall() -> None:
        model.forward = stock
        model.set_attn_implementation(before)
        compiled.remove()

    model.set_attn_implementation(attention)
    model.forward = types.MethodType(forward, model)
    return uninstall


def score(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    layout: PackedBatch,
    num_items_in_batch: Any,
    scale: float,
    outputs: tuple[str, ...],
) -> FusedCausalLMOutput:
    """Compute the outputs, (rows, length - 1) for labels (rows, length); 0 without a label."""
    states = backbone(model, input_ids, layout)[0]
    hidden = states[layout.sources]
    head = model.get_output_embeddings()
    targets = labels[:, 1:].flatten()[layout.scored]
    log_probs, entropy, mean_logits, is_top1 = label_outputs(hidden, head, targets, scale, outputs)
    shape = labels[:, 1:].shape
    everywhere = _mean_logits(states, head, scale, layout) if EVERYWHERE in outputs else None

    def spread(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        flat = values.new_zeros(shape.numel()).index_copy(0, layout.scored, values)
        return flat.view(shape).clone()  # FSDP hooks outputs, and torch warns of hooked views

    count = max(len(layout.scored), 1) if num_items_in_batch is None else num_items_in_batch
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / count,
        log_probs=spread(log_probs),
        entropy=spread(entropy),
        mean_logits=spread(mean_logits) if everywhere is None else everywhere,
        is_top1=spread(is_top1),
        label_mask=labels[:, 1:] != -100,
    )


@torch.no_grad()
def _mean_logits(
    states: torch.Tensor, head: Any, scale: float, layout: PackedBatch
) -> torch.Tensor:
    """Return the mean logit of each token, (rows, length - 1), 0 at padding. The mean over the
    vocabulary is one product with the mean row of the head."""
    weight, bias = gathered(head.weight), gathered(head.bias)
    with torch.autocast(states.device.type, enabled=False):
        means = states.float() @ weight.mean(0, dtype=torch.float32)
    if bias is not None:
        means += bias.mean(dtype=torch.float32)
    place = layout.place[:, :-1]
    result: torch.Tensor = (scale * means[place]).where(place >= 0, 0.0)
    return result


def backbone(model: PreTrainedModel, input_ids: torch.Tensor, layout: PackedBatch) -> torch.Tensor:
    """Return the hidden states of the packed row, (1, tokens, width)."""
    traceable = model.config._attn_implementation == COMPILED
    # A mask of four dimensions passes transformers' own untouched; attention goes by the layout.
    mask = torch.zeros(1, 1, 1, 1, device=input_ids.device)
    result = model.base_model(
        input_ids=input_ids.flatten()[layout.token_indices][None],
        attention_mask=mask,
        position_ids=layout.positions[None],
        use_cache=False,
        **({SPANS: layout.spans} if traceable else {LAYOUT: Carrier(layout)}),
    )
    states: torch.Tensor = result.last_hidden_state
    return states
