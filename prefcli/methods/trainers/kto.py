"""trl.KTOTrainer: single responses with a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class KtoAdapter(TrainerAdapter):
    """trl's KTOTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    batches: ClassVar[BatchKind] = "labelled"
    token_columns: ClassVar[tuple[str, ...]] = ("prompt_ids", "completion_ids")
    keeps_row_order: ClassVar[bool] = True
    reads_metrics: ClassVar[bool] = True

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer

    def scored_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return nothing for a batch of the KL term: its rows get the arguments of the others."""
        return None if "KL_input_ids" in batch else super().scored_rows(batch)

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return [*row["prompt_ids"], *row["completion_ids"]]


KTO = KtoAdapter()
