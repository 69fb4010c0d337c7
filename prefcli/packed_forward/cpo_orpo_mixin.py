"""ORPO's and SimPO's own way to score a batch of pairs, through the forward that the others use.

trl's takes whole logits, of every token of a padded batch, and of both sides each prompt. The
results here are the same, but for what it averages into `logits/chosen` and `logits/rejected`:
tokens of the rows, where trl's count the padding as well and so depend on how rows were batched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers import Trainer as TransformersTrainer

from prefcli.packed_forward.chunked_lm_head import EVERYWHERE
from prefcli.packed_forward.install import FastForward

OUTPUTS = ("log_probs", EVERYWHERE)
"""Figures that the forward has to give."""

_NONE = -100

Results = tuple[torch.Tensor, ...]
"""As trl unpacks them: log-probabilities of chosen and of rejected, each (pairs,) and a mean over
tokens; logits of both, of which it reads the mean; the NLL of the chosen; for experts, one more."""


class CpoOrpoMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Over trl's ORPOTrainer, or its CPOTrainer with SimPO's loss."""

    speed: FastForward | None = None
    """To be set once the trainer is built, and to prepare `scored`."""

    @property
    def scored(self) -> PreTrainedModel:
        """The policy without peft's wrapper."""
        policy = self.model
        return policy.get_base_model() if isinstance(policy, PeftModel) else policy

    def concatenated_forward(self, model: Any, batch: Mapping[str, Any]) -> Results:
        """model: as trl has it, in the wrappers of the launcher and of peft."""
        rows = self.concatenated_inputs(batch, device=self.accelerator.device)
        ids, mask, labels = (
            rows[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels")
        )
        pairs = len(batch["chosen_labels"])
        if self.speed is None or self.speed.reason is not None:
            results: Results = super().concatenated_forward(model, batch)
            means = torch.cat([logits.detach().mean(-1) for logits in results[2:4]])
            return (*results[:2], *self._logits_of_text(means, mask, pairs), *results[4:])
        wanted = labels
        if self._nll_of_prompts:
            whole = torch.where(mask == 1, ids, _NONE)
            wanted = torch.cat([whole[:pairs], labels[pairs:]])
        # A column more, so that the last token of the longest row has its mean logit, too.
        output = model(
            input_ids=pad(ids, (0, 1)),
            attention_mask=pad(mask, (0, 1)),
            labels=pad(wanted, (0, 1), value=_NONE),
            use_cache=False,
            fused_lm_head=True,
        )
        means = output.mean_logits[:, : ids.size(1) - self._nll_of_prompts]
        log_probs = output.log_probs[:, :-1]
        responses = labels[:, 1:] != _NONE
        logps = (log_probs * responses).sum(1) / responses.sum(1)
        return (
            *logps.split(pairs),
            *self._logits_of_text(means, mask, pairs),
            self._nll_of_chosen(log_probs, wanted, pairs),
        )

    @property
    def _nll_of_prompts(self) -> bool:
        """ORPO's NLL covers them, and its logits lack the last column."""
        return not hasattr(self, "cpo_alpha")

    def _nll_of_chosen(
        self, log_probs: torch.Tensor, wanted: torch.Tensor, pairs: int
    ) -> torch.Tensor:
        """Mean over the tokens of all chosen rows."""
        if not self._nll_of_prompts and self.cpo_alpha == 0:
            return log_probs.new_zeros(())
        # No label, no log-probability.
        return -log_probs[:pairs].sum() / (wanted[:pairs, 1:] != _NONE).sum()

    def _logits_of_text(
        self, means: torch.Tensor, mask: torch.Tensor, pairs: int
    ) -> list[torch.Tensor]:
        """Mean logits (rows, length) of the tokens that are there, of chosen and of rejected."""
        text = mask[:, 1:] if self._nll_of_prompts else mask
        return [means[at][text[at] == 1] for at in (slice(pairs), slice(pairs, None))]
