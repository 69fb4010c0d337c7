"""SFT terms as means over the tokens of a whole step or evaluation, however rows are batched.

trl averages the means of device batches, so a token in a batch of short responses has more weight,
and accumulation or the number of processes changes the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer as TransformersTrainer

from prefcli.training.mixins.context import TrainerContext

_CHUNK = 100
"""Rows that are collated at once to count their tokens."""


class TokenWeightedSftMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """A trl trainer of pairs whose loss contains the NLL of the chosen responses."""

    context: TrainerContext
    loss_weights: list[float]
    _step_tokens: int = 0
    """Tokens of the SFT term in the step, over all processes."""
    _weight: float = 1.0
    """Weight of this device batch's mean; 1 if it is the whole step."""
    _eval_tokens_per_row: float | None = None
    """Mean over all rows of the current evaluation."""
    _counted: dict[str, float] = {}  # noqa: RUF012  # replaced, never changed
    """The same by the fingerprint of the dataset."""
    _plain_loss_weights: list[float] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        own = torch.tensor(sum(map(self._tokens, batches)), device=self.args.device)
        self._step_tokens = int(self.accelerator.gather(own).sum())
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self._weight = 1.0
            if self._step_tokens:
                # The mean of this batch will be divided by this number.
                divisor = self.current_gradient_accumulation_steps * self.args.world_size
                self._weight = self._tokens(inputs) * divisor / self._step_tokens
        if not self.context.method.trainer.concatenates_forward:
            self._plain_loss_weights = self._plain_loss_weights or list(self.loss_weights)
            self.loss_weights = [
                weight * self._weight if loss == "sft" else weight
                for loss, weight in zip(self.loss_types, self._plain_loss_weights, strict=True)
            ]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        self._eval_tokens_per_row = self._tokens_per_row(dataloader.dataset)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._eval_tokens_per_row, self._weight = None, 1.0

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._weight = 1.0
        if self._eval_tokens_per_row is not None:
            # The means of batches are later weighted by their rows.
            rows = self.context.method.trainer.row_count(inputs)
            self._weight = self._tokens(inputs) / rows / self._eval_tokens_per_row
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _tokens_per_row(self, dataset: Dataset) -> float:
        if dataset._fingerprint not in self._counted:
            chunks = (dataset[at : at + _CHUNK] for at in range(0, len(dataset), _CHUNK))
            total = sum(self._tokens(self.data_collator(_by_row(chunk))) for chunk in chunks)
            self._counted = {dataset._fingerprint: total / len(dataset)}
        return self._counted[dataset._fingerprint]

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        """Weight the fifth result, the NLL. Evaluations get here without `compute_loss`."""
        results = list(super().concatenated_forward(model, batch))
        results[4] = results[4] * self._weight
        return tuple(results)

    def _tokens(self, batch: Mapping[str, torch.Tensor]) -> int:
        return self.context.method.trainer.sft_term_tokens(batch)


def _by_row(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
