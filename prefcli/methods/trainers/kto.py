"""trl.KTOTrainer: single responses with a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter


class KtoAdapter(TrainerAdapter):
    """trl's KTOTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    batches: ClassVar[BatchKind] = "labelled"
    token_columns: ClassVar[tuple[str, ...]] = ("prompt_ids", "completion_ids")
    keeps_row_order: ClassVar[bool] = True

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return [*row["prompt_ids"], *row["completion_ids"]]


KTO = KtoAdapter()
