"""The packed forward for trl's ORPO and CPO trainers, which score pairs in their own way.

trl computes the logits of every token of a padded batch, and those of the prompt twice. The results
here are the same, except for `logits/chosen` and `logits/rejected`: they are means over the tokens
of the rows, whereas trl's include padding and so depend on how rows are batched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers import Trainer as TransformersTrainer

from prefcli.methods.trainers.base import IGNORED
from prefcli.model.peft_wrapper import base_of
from prefcli.packed_forward.chunked_lm_head import EVERYWHERE
from prefcli.packed_forward.prefix_attention import LAYOUT
from prefcli.training.mixins.context import TrainerContext

OUTPUTS = ("log_probs", EVERYWHERE)
"""Outputs of the packed forward that the trainers need."""

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""input_ids, attention_mask and labels, each (rows, length): chosen rows, then rejected ones."""

Results = tuple[torch.Tensor, ...]
"""Log-probabilities of chosen and of rejected responses, each (pairs,), sums or means over tokens;
logits of both, which trl averages; the NLL of the chosen responses; for a mixture of
experts, the balancing loss."""


_CERTAIN = -(2.0**-22)
"""Log-probabilities closer to 0 than this are certain in float32, where 1 - p is rounded to 0."""


class ConcatenatedForwardMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """trl's ORPOTrainer or CPOTrainer with the packed forward."""

    context: TrainerContext

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.context.packed_forward is not None:
            self.context.packed_forward.prepare(self.base_policy, outputs=OUTPUTS)

    @property
    def base_policy(self) -> PreTrainedModel:
        """The policy without peft's wrapper."""
        policy: PreTrainedModel = base_of(self.model)
        return policy

    @property
    def _sft_term_covers_prompt(self) -> bool:
        """True for ORPO, whose logits also lack the last column."""
        return self.context.method.trainer.sft_term_scope == "text"

    def concatenated_forward(self, model: Any, batch: Mapping[str, Any]) -> Results:
        """Score both sides of a batch. model: wrapped by the launcher and by peft."""
        ids, mask, labels = self._concatenated(batch, self.accelerator.device)
        pairs = len(batch["chosen_labels"])
        packed = self.context.packed_forward
        if packed is None or packed.reason is not None:
            results: Results = super().concatenated_forward(model, batch)
            means = torch.cat([logits.detach().mean(-1) for logits in results[2:4]])
            return (*results[:2], *self._text_logits(means, mask, pairs), *results[4:])
        input_ids, attention_mask, scored = self._padded(ids, mask, labels)
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=scored,
            use_cache=False,
            fused_lm_head=True,
            **{key: batch[key] for key in (LAYOUT,) if key in batch},
        )
        scored = scored[:, :-1]
        means = output.mean_logits[:, : ids.size(1) - self._sft_term_covers_prompt]
        log_probs = output.log_probs[:, :-1]
        responses = labels[:, 1:] != IGNORED
        scores = (log_probs * responses).sum(1)
        if not self.context.method.reward_is_sum:
            scores = scores / responses.sum(1)
        return (
            *scores.split(pairs),
            *self._text_logits(means, mask, pairs),
            self._chosen_nll(log_probs, scored, pairs),
        )

    def odds_ratio_loss(self, chosen: torch.Tensor, rejected: torch.Tensor) -> Any:
        """Compute ORPO's loss, finite also at certainty: the odds of p = 1 are infinite.

        The gradient of a certain response is 0 there; trl's is NaN.
        """
        sides = (side.float().clamp(max=_CERTAIN) for side in (chosen, rejected))
        return super().odds_ratio_loss(*sides)

    def scored_rows(self, batch: Mapping[str, torch.Tensor]) -> Rows:
        """Return input_ids, attention_mask and labels for the layout of the collator."""
        return self._padded(*self._concatenated(batch, batch["chosen_labels"].device))

    def _concatenated(self, batch: Mapping[str, Any], device: torch.device) -> Rows:
        rows = self.concatenated_inputs(batch, device=device)
        ids, mask, labels = (
            rows[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels")
        )
        return ids, mask, labels

    def _padded(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Rows:
        """Return what the model gets: the labels of the SFT term included, and one more column, so
        that the last token of the longest row has a mean logit."""
        if self._sft_term_covers_prompt:
            pairs = len(labels) // 2
            text = torch.where(mask == 1, ids, IGNORED)
            labels = torch.cat([text[:pairs], labels[pairs:]])
        return pad(ids, (0, 1)), pad(mask, (0, 1)), pad(labels, (0, 1), value=IGNORED)

    def _chosen_nll(
        self, log_probs: torch.Tensor, scored: torch.Tensor, pairs: int
    ) -> torch.Tensor:
        """Return the mean over the tokens of all chosen rows."""
        if not self.context.method.has_sft_term:
            return log_probs.new_zeros(())
        # Tokens without a label have a log-probability of 0.
        return -log_probs[:pairs].sum() / (scored[:pairs, 1:] != IGNORED).sum()

    def _text_logits(
        self, means: torch.Tensor, mask: torch.Tensor, pairs: int
    ) -> list[torch.Tensor]:
        """Select the mean logits of tokens that are not padding: chosen, then rejected."""
        text = mask[:, 1:] if self._sft_term_covers_prompt else mask
        return [means[side][text[side] == 1] for side in (slice(pairs), slice(pairs, None))]
