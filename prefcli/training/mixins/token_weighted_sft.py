"""SFT terms as means over the tokens of a whole step, or of a whole evaluation, in any batches.

trl takes the mean inside each device batch and averages those means, so that a token of a batch of
short responses weighs more, and accumulation or another number of processes changes the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer as TransformersTrainer

_MANY = 100
"""Rows that are collated at once to count their tokens."""


class TokenWeightedSftMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """For trl's trainers of pairs whose loss holds the chosen side's NLL."""

    _step_tokens: int = 0
    _slots: int = 1
    """Device batches of the step, over all processes."""
    _share: float = 1.0
    """What this device batch's mean counts for; 1 where it is the whole step."""
    _eval_tokens: float | None = None
    """Tokens a row, of all rows of the evaluation that goes on."""
    _counted: dict[str, float] = {}  # noqa: RUF012  # replaced, never changed
    """The same, by the dataset's fingerprint."""
    loss_weights: list[float]
    _plain_weights: list[float] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        mine = torch.tensor(sum(map(self._tokens, batches)), device=self.args.device)
        self._step_tokens = int(self.accelerator.gather(mine).sum())
        self._slots = len(batches) * self.args.world_size
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            alone = self._slots == 1
            self._share = 1.0 if alone else self._tokens(inputs) * self._slots / self._step_tokens
        if hasattr(self, "loss_weights"):  # DPO's, one a loss
            self._plain_weights = self._plain_weights or list(self.loss_weights)
            self.loss_weights = [
                weight * self._share if loss == "sft" else weight
                for loss, weight in zip(self.loss_types, self._plain_weights, strict=True)
            ]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        self._eval_tokens = self._tokens_a_row(dataloader.dataset)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._eval_tokens, self._share = None, 1.0

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._share = 1.0
        if self._eval_tokens is not None:
            # The batches' means are weighted by their rows.
            self._share = self._tokens(inputs) / _rows(inputs) / self._eval_tokens
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _tokens_a_row(self, dataset: Dataset) -> float:
        """Of all rows of an evaluation, counted once."""
        if dataset._fingerprint not in self._counted:
            batches = (dataset[at : at + _MANY] for at in range(0, len(dataset), _MANY))
            total = sum(self._tokens(self.data_collator(_by_row(batch))) for batch in batches)
            self._counted = {dataset._fingerprint: total / len(dataset)}
        return self._counted[dataset._fingerprint]

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        """ORPO's and CPO's: the fifth of its results is the NLL."""
        results = list(super().concatenated_forward(model, batch))
        # An evaluation comes here without compute_loss.
        results[4] = results[4] * self._share
        return tuple(results)

    def _tokens(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Tokens that the NLL of this batch is a mean over."""
        if "completion_mask" in batch:
            chosen, _ = batch["completion_mask"].chunk(2, dim=0)
            return int(chosen[:, 1:].sum())
        if hasattr(self, "cpo_alpha"):
            return int((batch["chosen_labels"][:, 1:] != -100).sum())
        # ORPO's covers the prompt, too: all but the first token.
        return int(batch["chosen_attention_mask"][:, 1:].sum())


def _by_row(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _rows(batch: Mapping[str, torch.Tensor]) -> int:
    """Pairs: DPO's collator puts both sides into one tensor."""
    if "completion_mask" in batch:
        return len(batch["completion_mask"]) // 2
    return len(batch["chosen_labels"])
