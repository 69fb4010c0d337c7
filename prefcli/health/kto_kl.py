"""A KL estimate of KTO that does not work."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext
from prefcli.methods import Method


class KtoKl(HealthRule):
    """kto's kl has been exactly 0 since the start, long after warm-up, or is of matched pairs.

    The estimate is clipped at 0 and uses mismatched prompts and completions of a device batch
    (huggingface/trl issue 2554, pull request 2153). It often returns to 0, since such completions
    become less likely, too; but it should not stay there from the start.
    """

    name: ClassVar[str] = "kto_kl"
    reads: ClassVar[tuple[str, ...]] = ("kl",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    steps: Count = 50
    """Optimizer steps after warm-up. A proposal."""
    matched: Fraction = 0.5
    """Share of rows that are paired with their own completion, above which kl says nothing."""

    def _matched(self, history: History, run: RunContext) -> Advice | None:
        """Report once that kl is not that of the paper, whatever its value."""
        if history.last("kl") is None:
            return None
        return self.advice(
            history,
            seen=f"{run.matched_neighbours:.0%} of the rows are paired with their own completion",
            means="kl is the reward of matched pairs instead of KTO's reference point",
            change="add rows with other completions, raise training.per_device_train_batch_size, "
            "or set kto.loss_type: apo_zero_unpaired, which does not use kl",
        )

    @classmethod
    def applies(cls, method: Method) -> bool:
        return method.pairs_neighbours

    def check(self, history: History, run: RunContext) -> Advice | None:
        if not run.method.pairs_neighbours:
            return None
        if run.matched_neighbours > self.matched:
            return self._matched(history, run)
        recent = history.recent("kl", self.steps, after=run.warmup)
        if recent is None or recent.high > 0:
            return None
        if any(history.series("kl")):
            return None
        return self.advice(
            history,
            seen=f"kl is 0 in all {history.step} steps",
            means="kto's reference point is not estimated; device batches are too small, or all "
            "their prompts are equal",
            change="set training.per_device_train_batch_size to at least 4, or "
            "kto.loss_type: apo_zero_unpaired, which does not use kl",
        )
