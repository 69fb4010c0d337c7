"""Labels that can't be learnt."""

from __future__ import annotations

import math
from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_SIGMAS = 3.0
_AUDIT = "look at pairs with `prefcli data`, and at the columns of chosen and rejected"


class Accuracy(HealthRule):
    """The reward accuracy is at chance, or below it, long after warm-up.

    huggingface/trl issues 2553 and 2371. An accuracy over n pairs is uncertain by
    sqrt(p (1 - p) / n), and is called low only three times that below the mark. Published runs
    have 0.61 to 0.79 at their end, and the qlora reproductions of zephyr-7b-dpo 0.62 to 0.66 by
    step 100. Swapped labels alone are no harder to learn than right ones: what shows is rows that
    contradict each other, and data.train against data.eval. Methods without a reference begin at
    any accuracy and are not judged here.
    """

    name: ClassVar[str] = "accuracy"
    reads: ClassVar[tuple[str, ...]] = ("rewards/accuracies",)
    defers_to: ClassVar[tuple[str, ...]] = ("no_learning", "collapse")

    chance: Fraction = 0.55
    """What surely lies below this is no better than chance. A proposal."""
    pairs: Count = 1000
    """Train pairs that are averaged, all of them after warm-up."""
    steps: Count = 30
    """Optimizer steps to wait after warm-up; never less than a fifth of the run."""

    def look(self, history: History, facts: RunContext) -> Advice | None:
        if not facts.starts_at_reference:
            return None
        return self._eval(history, facts) or self._train(history, facts)

    def _train(self, history: History, facts: RunContext) -> Advice | None:
        if history.step < facts.wait(self.steps):
            return None
        steps = max(math.ceil(self.pairs / facts.batch), self.steps)
        seen = history.recent("rewards/accuracies", steps, after=facts.warmup)
        margin = history.recent("rewards/margins", steps, after=facts.warmup)
        if seen is None or margin is None:
            return None
        pairs = seen.steps * facts.batch
        what = f"accuracy {seen.mean:.2f} over the last {pairs} train pairs"
        most = _most(seen.mean, pairs)
        if most < 0.5 and margin.mean < 0:
            return self.advice(
                history,
                seen=what,
                means="the policy goes against its own labels; steps too large, or rows that "
                "contradict each other",
                change=f"lower training.learning_rate; {_AUDIT}",
            )
        if most < self.chance:
            return self.advice(
                history,
                seen=what,
                means="no better than chance; the labels are random, or too little is learnt",
                change=f"{_AUDIT}; if they are right, raise training.learning_rate",
            )
        return None

    def _eval(self, history: History, facts: RunContext) -> Advice | None:
        last = history.last("eval_rewards/accuracies")
        margin = history.last("eval_rewards/margins")
        if last is None or margin is None or last.step < facts.wait(self.steps):
            return None
        what = f"accuracy {last.value:.2f} on the {facts.eval_rows} pairs of data.eval"
        most = _most(last.value, facts.eval_rows)
        if most < 0.5 and margin.value < 0:
            return self.advice(
                history,
                seen=what,
                means="it prefers what data.train prefers, and data.eval the opposite; in one of "
                "them chosen and rejected are swapped",
                change=_AUDIT,
            )
        if most < self.chance:
            return self.advice(
                history,
                seen=what,
                means="no better than chance; the labels are random, or what is learnt does not "
                "carry over",
                change=f"{_AUDIT}; if they are right, train on more pairs",
            )
        return None


def _most(mean: float, pairs: int) -> float:
    """What the accuracy may truly be at the most."""
    share = min(max(mean, 0.0), 1.0)
    # Of 0 hits the formula would be sure at once: one more hit is always thinkable.
    share = (share * pairs + 1) / (pairs + 2)
    return share + _SIGMAS * math.sqrt(share * (1 - share) / pairs) if pairs else 1.0
