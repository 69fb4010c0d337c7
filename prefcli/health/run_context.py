"""What a rule must know of a run beside its metrics, and the recipe's words for its cures."""

from __future__ import annotations

from dataclasses import dataclass

from prefcli.methods import Method


@dataclass(frozen=True)
class RunContext:
    """Facts of a run that stay as they are from its first step to its last."""

    method: Method
    steps: int
    """Planned optimizer steps."""
    warmup: int = 0
    """Steps until the learning rate is reached."""
    batch: int = 32
    """Rows of an optimizer step: how noisy its figures are."""
    eval_rows: int = 0
    """Rows of an evaluation; 0 where there is none."""
    starts_at_reference: bool = False
    """The policy begins as the reference, so margins begin at 0 and rewards tell how far it is."""
    mixes_sft: bool = False
    fp16: bool = False
    """float16's loss scaling overflows now and then by design, and skips that step."""

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
        fp16: bool = False,
    ) -> RunContext:
        """other_reference: the recipe names another model than the one training starts from."""
        return cls(
            method=method,
            steps=steps,
            warmup=warmup,
            batch=batch,
            eval_rows=eval_rows,
            starts_at_reference=method.needs_reference and not other_reference,
            mixes_sft=mixes_sft,
            fp16=fp16,
        )

    @property
    def hold(self) -> str:
        """Advice: how to keep up the likelihood of what the model said before."""
        mix = "raise sft_mix.fraction" if self.mixes_sft else "mix demonstrations in (sft_mix)"
        term = self.method.sft_term_advice
        return mix if term is None else f"{term}, or {mix}"

    def wait(self, steps: int) -> int:
        """The step from which on nothing learnt is a finding: after warm-up and so many steps,
        and a fifth of the run."""
        return max(self.warmup + steps, self.steps // 5)
