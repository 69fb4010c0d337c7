"""A judge that gives all completions of a prompt the same score."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10


class EqualScores(HealthRule):
    """The completions of most prompts have equal scores, whose advantages are 0.

    Prompts that the policy always or never solves teach nothing (Yu et al. 2025, arXiv:2503.14476,
    section 3.2). The threshold is a proposal.
    """

    name: ClassVar[str] = "equal_scores"
    of_sampled_completions: ClassVar[bool] = True

    share: Fraction = 0.8
    """Share of prompts with equal scores that is reported, as a mean of ten steps."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        recent = history.recent("frac_reward_zero_std", _STEPS)
        if recent is None or recent.mean < self.share:
            return None
        return self.advice(
            history,
            seen=f"{recent.mean:.0%} of the prompts have completions with equal scores",
            means="only the penalty on the KL divergence is trained on these prompts",
            change="write a judge with finer scores, drop prompts that are always or never solved, "
            "or raise rloo.num_generations",
        )
