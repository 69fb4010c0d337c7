"""A policy that has moved far from its reference."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Positive
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10


class PolicyKl(HealthRule):
    """The policy's completions are far from the reference, where a judge is easily exploited.

    The true quality falls with the distance from the start while the judge's score still rises
    (Gao et al. 2022, arXiv:2210.10760, fig. 1). The threshold is a proposal.
    """

    name: ClassVar[str] = "policy_kl"
    of_sampled_completions: ClassVar[bool] = True

    nats: Positive = 50.0
    """KL divergence per completion that is reported, as a mean of ten steps."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        recent = history.recent("objective/kl", _STEPS)
        if recent is None or recent.mean <= self.nats:
            return None
        return self.advice(
            history,
            seen=f"KL {recent.mean:.3g} nats per completion",
            means="the policy is so far from its reference that the judge may be exploited",
            change=f"read completions.jsonl, {run.method.weaken}, or train for fewer steps",
        )
