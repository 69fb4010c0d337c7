"""trl.RewardTrainer: both sides of each pair as whole sequences, each with one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class RewardAdapter(TrainerAdapter):
    """trl's RewardTrainer."""

    batches: ClassVar[BatchKind] = "scored_pairs"
    token_columns: ClassVar[tuple[str, ...]] = ("chosen_ids", "rejected_ids")
    sides_have_prompt: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("mean_reward", "min_reward", "max_reward")
    duplicate_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "margin")
    drops_longer_rows: ClassVar[bool] = True

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import RewardConfig, RewardTrainer

        return RewardConfig, RewardTrainer

    def packed_length(self, lengths: Mapping[str, Any], max_length: int) -> Any:
        return sum(lengths[name] for name in self.token_columns) - lengths["shared"]

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return list(row["chosen_ids"])

    def ids_and_mask(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        pairs = self.row_count(batch)
        return batch["input_ids"][:pairs], batch["attention_mask"][:pairs]

    def scored_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return both sides; no token of them has a label."""
        ids = batch["input_ids"]
        return ids, batch["attention_mask"], ids.new_full(ids.shape, -100)

    def row_count(self, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2


REWARD = RewardAdapter()
