"""The scores of a reward model, computed on a packed row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from prefcli.model.reward_head import head_of
from prefcli.packed_forward.forward import backbone
from prefcli.packed_forward.packed_batch import PackedBatch

_HEAD = "score"
"""Name of the head in transformers' classifiers with a decoder."""


@dataclass(frozen=True)
class RewardForward:
    """The score of each row, read at its last token that is not padding."""

    pad: int
    reads: ClassVar[frozenset[str]] = frozenset(
        (
            *("input_ids", "attention_mask", "margin"),
            *("num_items_in_batch", "use_cache", "return_dict"),  # the last one by peft
        )
    )
    unit: ClassVar[str] = "per number of the last hidden states"

    @classmethod
    def of(cls, model: PreTrainedModel) -> RewardForward | str:
        """Return how a classifier is computed, or why it is not."""
        pad = model.config.get_text_config().pad_token_id
        if pad is None:
            return "it has no padding token"
        return cls(pad) if [*head_of(model)] == [_HEAD] else "its head is not a layer named score"

    def applies(self, arguments: Mapping[str, Any]) -> bool:
        return True

    def labels(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        return torch.full_like(arguments["input_ids"], -100)

    def score(
        self, model: PreTrainedModel, arguments: Mapping[str, Any], layout: PackedBatch
    ) -> SequenceClassifierOutputWithPast:
        """Compute the scores, (rows, 1)."""
        ids = arguments["input_ids"]
        states = backbone(model, ids, layout)[0]
        # As transformers finds it: a padding token may also be the last one of a text.
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = ((ids != self.pad) * columns).argmax(1, keepdim=True)
        ends = layout.place.gather(1, last)[:, 0]
        return SequenceClassifierOutputWithPast(logits=getattr(model, _HEAD)(states[ends]))

    def checked(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the hidden states that the head reads: a new head gives every row the score 0."""
        ids = batch["input_ids"]
        other = (self.pad + 1) % model.config.get_text_config().vocab_size
        ids = ids.masked_fill(ids == self.pad, other)
        ids = ids.masked_fill(batch["attention_mask"] == 0, self.pad)
        with _without_head(model):
            states: torch.Tensor = model(
                input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False
            ).logits
        return states.float()


@contextmanager
def _without_head(model: PreTrainedModel) -> Iterator[None]:
    head = getattr(model, _HEAD)
    setattr(model, _HEAD, torch.nn.Identity())
    try:
        yield
    finally:
        setattr(model, _HEAD, head)
