"""A policy that has become certain of every token."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10


class Entropy(HealthRule):
    """The policy's entropy has collapsed: all completions of a prompt become equal.

    Equal completions have no advantage, so that nothing more is learned (Cui et al. 2025,
    arXiv:2505.22617). The threshold is a proposal.
    """

    name: ClassVar[str] = "entropy"
    of_sampled_completions: ClassVar[bool] = True

    share: Fraction = 0.1
    """Share of the first ten steps' entropy below which the rest is reported."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        windows = history.from_opening("entropy", _STEPS, _STEPS)
        if windows is None:
            return None
        first, recent = windows
        if recent.mean >= self.share * first.mean:
            return None
        equal = history.last("frac_reward_zero_std")
        same = f", and {equal.value:.0%} of the prompts have equal scores" if equal else ""
        return self.advice(
            history,
            seen=f"entropy {recent.mean:.2g} nats per token, {first.mean:.2g} at the start{same}",
            means="the completions of a prompt become equal, which teaches nothing",
            change=f"{run.method.weaken}, lower training.learning_rate, or raise rloo.temperature",
        )
