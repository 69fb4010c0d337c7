"""trl.experimental.cpo.CPOTrainer, which has SimPO's and AlphaPO's losses as well as CPO's."""

from __future__ import annotations

from typing import Any, ClassVar

from prefcli.methods.trainers.orpo import SplitPairsAdapter


class CpoAdapter(SplitPairsAdapter):
    """trl's CPOTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("nll_loss",)

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer


CPO = CpoAdapter()
