"""Batches that carry the layout of their packed row, built while their tensors are on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer as TransformersTrainer

from prefcli.training.mixins.context import TrainerContext


class PackedCollationMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """A trl trainer whose loaders lay out each batch for the packed forward.

    The forward would have to copy the token ids back from the device, and wait for that.
    """

    context: TrainerContext
    data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows as trl does, and add the layout as one more argument of the model."""
        batch = self.data_collator(rows)
        packed = self.context.packed_forward
        scored = None if packed is None or not packed.is_in_use else self.scored_rows(batch)
        return batch if packed is None or scored is None else batch | packed.collated(*scored)

    def scored_rows(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        """Return input_ids, attention_mask and labels of the batch as the model will get them."""
        return self.context.method.trainer.scored_rows(batch)

    def get_train_dataloader(self) -> DataLoader[Any]:
        collator, self.data_collator = self.data_collator, self.collate
        try:
            loader: DataLoader[Any] = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        return loader
