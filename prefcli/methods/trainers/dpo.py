"""trl.DPOTrainer: both sides of each pair in one batch, scored by the fused head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class DpoAdapter(TrainerAdapter):
    """trl's DPOTrainer."""

    batches: ClassVar[BatchKind] = "pairs"
    token_columns: ClassVar[tuple[str, ...]] = ("prompt_ids", "chosen_ids", "rejected_ids")

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return [*row["prompt_ids"], *row["chosen_ids"]]

    def ids_and_mask(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        pairs = self.row_count(batch)
        return batch["input_ids"][:pairs], batch["attention_mask"][:pairs]

    def row_count(self, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2

    def sft_term_tokens(self, batch: Batch) -> int:
        return int(batch["completion_mask"][: self.row_count(batch), 1:].sum())


DPO = DpoAdapter()
