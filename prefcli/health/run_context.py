"""What a rule must know of a run beside its metrics, and the recipe's words for its cures."""

from __future__ import annotations

from dataclasses import dataclass

from prefcli.methods import Dpo, Method


@dataclass(frozen=True)
class RunContext:
    """Facts of a run that stay as they are from its first step to its last."""

    method: str
    steps: int
    """Planned optimizer steps."""
    warmup: int = 0
    """Steps until the learning rate is reached."""
    batch: int = 32
    """Rows of an optimizer step: how noisy its figures are."""
    eval_rows: int = 0
    """Rows of an evaluation; 0 where there is none."""
    scale: float = 0.1
    """What multiplies log-probabilities in rewards: beta, or orpo's lambda."""
    losses: tuple[str, ...] = ()
    """dpo.loss_type."""
    starts_at_reference: bool = False
    """The policy begins as the reference, so margins begin at 0 and rewards tell how far it is."""
    has_sft_term: bool = False
    mixes_sft: bool = False
    estimates_kl: bool = False
    """The kl of kto is measured, and no constant 0."""
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
        scale = getattr(method, "beta", getattr(method, "lambda_", None))
        return cls(
            method=method.name,
            steps=steps,
            warmup=warmup,
            batch=batch,
            eval_rows=eval_rows,
            scale=1.0 if scale is None else scale,
            losses=tuple(method.losses) if isinstance(method, Dpo) else (),
            starts_at_reference=method.needs_reference and not other_reference,
            has_sft_term=method.has_sft_term,
            mixes_sft=mixes_sft,
            estimates_kl=method.pairs_neighbours,
            fp16=fp16,
        )

    @property
    def sums(self) -> bool:
        """Rewards are of log-probabilities summed over a response, not of means over its tokens."""
        return self.method in ("dpo", "ipo", "kto")

    @property
    def bounded_loss(self) -> bool:
        """The loss looks at the reward margin itself, so that a large one leaves no gradient."""
        return self.method == "kto" or (
            self.method == "dpo" and not {"ipo", "sigmoid_norm", "sppo_hard"} & set(self.losses)
        )

    @property
    def tighten(self) -> str:
        """The recipe's way to let the preference move the policy less."""
        return "lower orpo.lambda" if self.method == "orpo" else f"raise {self.method}.beta"

    @property
    def loosen(self) -> str:
        return "raise orpo.lambda" if self.method == "orpo" else f"lower {self.method}.beta"

    @property
    def hold(self) -> str:
        """The recipe's way to hold up the likelihood of what the model said before."""
        mix = "raise sft_mix.fraction" if self.mixes_sft else "mix demonstrations in (sft_mix)"
        if self.method == "dpo":
            if self.has_sft_term:
                return f"weigh sft more in dpo.loss_weights, or {mix}"
            losses = ", ".join((*(self.losses or ("sigmoid",)), "sft"))
            return f"add an SFT term (dpo.loss_type: [{losses}]), or {mix}"
        if self.method == "simpo":
            term = "raise" if self.has_sft_term else "set"
            return f"{term} simpo.cpo_alpha, or {mix}"
        return mix

    def wait(self, steps: int) -> int:
        """The step from which on nothing learnt is a finding: after warm-up and so many steps,
        and a fifth of the run."""
        return max(self.warmup + steps, self.steps // 5)
