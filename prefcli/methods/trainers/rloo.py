"""trl.RLOOTrainer: prompts, whose completions are sampled and judged during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class RlooAdapter(TrainerAdapter):
    """trl's RLOOTrainer."""

    batches: ClassVar[BatchKind] = "completions"
    token_columns: ClassVar[tuple[str, ...]] = ("prompt_ids",)
    lacks: ClassVar[frozenset[str]] = frozenset({"max_length", "dataset_num_proc"})
    prepares_rows: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "reward_length_correlation",
        "objective/kl",
        "entropy",
        "completions/mean_length",
        "completions/clipped_ratio",
        "unscored",
    )
    reads_metrics: ClassVar[bool] = True

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import RLOOConfig, RLOOTrainer

        return RLOOConfig, RLOOTrainer

    def simulated_options(self, rows: int) -> dict[str, Any]:
        """Return one group of completions; their number has no effect on the memory."""
        return {"num_generations": rows}

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return list(row["prompt_ids"])

    def ids_and_mask(self, batch: Batch) -> None:
        """Return nothing: the rows of a batch are completions, which no file has."""

    def scored_rows(self, batch: Batch) -> None:
        """Return nothing: the completions do not exist yet when rows are collated."""

    def attention_masks(self, batch: Batch) -> Sequence[torch.Tensor]:
        return [batch["prompt_mask"], batch["completion_mask"]]

    def row_count(self, batch: Batch) -> int:
        return len(batch["completion_ids"])


RLOO = RlooAdapter()
