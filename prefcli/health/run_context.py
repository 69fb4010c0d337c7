"""The facts about a run that health rules need besides its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from prefcli.methods import Method


@dataclass(frozen=True)
class RunContext:
    """Facts that stay the same from the first step to the last."""

    method: Method
    steps: int
    """Planned optimizer steps."""
    warmup: int = 0
    """Steps of learning-rate warm-up."""
    batch: int = 32
    """Rows per optimizer step, which determine the noise of metrics."""
    eval_rows: int = 0
    """Rows per evaluation; 0 without evaluations."""
    starts_at_reference: bool = False
    """The policy starts as its reference: margins start at 0 and rewards measure the distance."""
    mixes_sft: bool = False
    frozen_head: bool = False
    """An adapter is trained, and neither the embeddings nor the output head are."""
    matched_neighbours: float = 0.0
    """Share of the rows whose neighbour in the device batch has the same completion."""
    fp16: bool = False
    """The loss scaling of float16 overflows sometimes by design, and skips that step."""

    @classmethod
    def of(
        cls,
        method: Method,
        *,
        steps: int,
        warmup: int,
        batch: int,
        eval_rows: int = 0,
        other_reference: bool = False,
        mixes_sft: bool = False,
        frozen_head: bool = False,
        matched_neighbours: float = 0.0,
        fp16: bool = False,
    ) -> RunContext:
        """Return the context of a run.

        other_reference: the recipe names a reference that is not the starting model.
        """
        return cls(
            method=method,
            steps=steps,
            warmup=warmup,
            batch=batch,
            eval_rows=eval_rows,
            starts_at_reference=method.needs_reference and not other_reference,
            mixes_sft=mixes_sft,
            frozen_head=frozen_head,
            matched_neighbours=matched_neighbours,
            fp16=fp16,
        )

    @property
    def keep_likelihood(self) -> str:
        """Advice that keeps up the likelihood of the model's former responses."""
        mix = "raise sft_mix.fraction" if self.mixes_sft else "mix in demonstrations (sft_mix)"
        term = self.method.sft_term_advice
        return mix if term is None else f"{term}, or {mix}"

    def earliest(self, steps: int) -> int:
        """Return the first step at which a lack of learning counts: after warm-up, after so many
        further steps, and after a fifth of the run."""
        return max(self.warmup + steps, self.steps // 5)
