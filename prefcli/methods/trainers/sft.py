"""trl.SFTTrainer: texts, packed or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.methods.trainers.base import BatchKind, TrainerAdapter


class SftAdapter(TrainerAdapter):
    """trl's SFTTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("mean_token_accuracy",)

    batches: ClassVar[BatchKind] = "text"

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl import SFTConfig, SFTTrainer

        return SFTConfig, SFTTrainer

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return list(row["input_ids"])


SFT = SftAdapter()
