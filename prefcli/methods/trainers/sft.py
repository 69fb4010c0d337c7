"""trl.SFTTrainer: texts, packed or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class SftAdapter(TrainerAdapter):
    """trl's SFTTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("mean_token_accuracy",)

    batches: ClassVar[BatchKind] = "text"
    token_columns: ClassVar[tuple[str, ...]] = ("input_ids",)

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import SFTConfig, SFTTrainer

        return SFTConfig, SFTTrainer

    def scored_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        if "attention_mask" not in batch:
            return None
        return batch["input_ids"], batch["attention_mask"], batch["labels"]

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return list(row["input_ids"])


SFT = SftAdapter()
