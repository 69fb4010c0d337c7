"""A model's forward pass, computed on a packed row: same arguments and results."""

from __future__ import annotations

import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

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


class PackedForward(Protocol):
    """The output of a model from the hidden states of a packed row."""

    reads: ClassVar[frozenset[str]]
    """Arguments that are read or have no effect; a call with others is not packed."""
    unit: ClassVar[str]
    """Of `checked`, in messages."""

    def applies(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call is one to compute, and not one of generation."""

    def labels(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Return the labels of a call, (rows, length); -100 for tokens without."""

    def score(
        self, model: PreTrainedModel, arguments: Mapping[str, Any], layout: PackedBatch
    ) -> Any:
        """Return the output of the model."""

    def checked(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Call the model, and return the numbers that the self-check compares."""


@dataclass(frozen=True)
class LabelForward:
    """Log-probabilities of labels by a language model that trl has given a fused head."""

    scale: float
    """Factor of the logits."""
    outputs: tuple[str, ...]
    reads: ClassVar[frozenset[str]] = frozenset(
        (
            *("input_ids", "attention_mask", "labels"),
            *("num_items_in_batch", "use_cache", "fused_lm_head"),
        )
    )
    unit: ClassVar[str] = "nats per token"

    @classmethod
    def of(cls, model: PreTrainedModel) -> LabelForward | None:
        """Read what trl requests; None if the packed forward does not compute it."""
        known = inspect.getclosurevars(model.forward).nonlocals
        if not set(_FROM_TRL) <= known.keys():
            return None
        scale, outputs, temperature, cap, precise = (known[name] for name in _FROM_TRL)
        if cap is not None or precise or not set(outputs) <= SUPPORTED_OUTPUTS:
            return None
        return cls(scale / temperature, outputs)

    def applies(self, arguments: Mapping[str, Any]) -> bool:
        return bool(arguments.get("fused_lm_head"))

    def labels(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        labels: torch.Tensor = arguments["labels"]
        return labels

    def score(
        self, model: PreTrainedModel, arguments: Mapping[str, Any], layout: PackedBatch
    ) -> FusedCausalLMOutput:
        """Compute the outputs, (rows, length - 1) for labels (rows, length); 0 without a label."""
        labels, num_items_in_batch = arguments["labels"], arguments.get("num_items_in_batch")
        scale, outputs = self.scale, self.outputs
        states = backbone(model, arguments["input_ids"], layout)[0]
        hidden = states[layout.sources]
        head = model.get_output_embeddings()
        targets = labels[:, 1:].flatten()[layout.scored]
        log_probs, entropy, mean_logits, is_top1 = label_outputs(
            hidden, head, targets, scale, outputs
        )
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

    def checked(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the log-probabilities of the labels, in nats."""
        log_probs: torch.Tensor = model(**batch, fused_lm_head=True).log_probs
        return log_probs.float()[batch["labels"][:, 1:] != -100]


def install(
    model: PreTrainedModel, packed: PackedForward, counts: Counts, attention: str
) -> Callable[[], None]:
    """Replace a model's forward pass by the packed one. Returns a function that restores it.

    model: without peft's wrapper. attention: one of `ATTENTIONS`. Tokens that rows share get one
    draw of dropout, while trl draws for each row.
    """
    stock, before = model.forward, model.config._attn_implementation

    @functools.wraps(stock)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        collated = kwargs.pop(LAYOUT, None)
        if not packed.applies(kwargs):
            with compiled.paused():
                return stock(*args, **kwargs)
        given = {name for name, value in kwargs.items() if value is not None}
        if args or "input_ids" not in given or not given <= packed.reads:
            counts.stock += 1
            with compiled.paused():
                return stock(*args, **kwargs)
        layout = counts.layout(
            kwargs["input_ids"], kwargs.get("attention_mask"), packed.labels(kwargs), collated
        )
        counts.attention[attention] += len(compiled.layers)
        return packed.score(self, kwargs, layout)

    compiled = CompiledLayers(model if attention == COMPILED else None)

    def uninstall() -> None:
        model.forward = stock
        model.set_attn_implementation(before)
        compiled.remove()

    model.set_attn_implementation(attention)
    model.forward = types.MethodType(forward, model)
    return uninstall


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
