"""Answers that the policy does not end."""

from __future__ import annotations

from typing import ClassVar

from prefcli.config_base import Count, Fraction
from prefcli.health.base import Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext


class EndToken(HealthRule):
    """The stop token is unlikely where held-out answers end, so generation rarely stops.

    An adapter trains neither the embeddings nor the output head, so a stop token that the base has
    never seen, such as one added for a chat template, may stay as unlikely as it was.
    """

    name: ClassVar[str] = "end_token"
    reads: ClassVar[tuple[str, ...]] = ("end_probability",)
    defers_to: ClassVar[tuple[str, ...]] = ("finite", "collapse", "no_learning")

    probability: Fraction = 0.05
    """A lower mean probability of the stop token is reported. A proposal."""
    steps: Count = 30
    """Optimizer steps to wait after warm-up (and at least a fifth of the run)."""

    def check(self, history: History, run: RunContext) -> Advice | None:
        last = history.last("eval_end_probability")
        if last is None or last.value >= self.probability or last.step < run.earliest(self.steps):
            return None
        first = history.points("eval_end_probability")[0]
        before = f", was {first.value:.2g} at step {first.step}" if first.step < last.step else ""
        ended = history.last("eval_samples_ended")
        samples = (
            f"; {ended.value:.0%} of the samples stopped by themselves"
            if ended is not None and ended.step == last.step
            else ""
        )
        means = "the policy rarely ends its answers"
        change = "train longer or raise training.learning_rate"
        if first.value >= self.probability:
            means = "the policy unlearned to end its answers"
            change = f"lower training.learning_rate, or {run.keep_likelihood}"
        elif run.starts_at_reference:
            means = "the policy rarely ended its answers before this run, and a preference between "
            means += "answers that both end does not teach it"
            change = "run `prefcli sft` first, until eval_end_probability is high"
        elif run.frozen_head:
            means += "; the adapter changes neither the embedding nor the output weights of the "
            means += "stop token"
            change = (
                "name the embeddings and the head in lora.modules_to_save, or choose a chat "
                "template that ends answers with a token that the base model knows"
            )
        return self.advice(
            history,
            seen="the stop token has a mean probability of "
            f"{last.value:.2g} where held-out answers end{before}{samples}",
            means=means,
            change=change,
        )
