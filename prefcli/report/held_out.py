"""Judgement of a model by the evaluations of its run.

The thresholds follow the practice of the DPO literature; those without a source are proposals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prefcli.health.collapse import FLOOR
from prefcli.health.overfitting import MAX_RATIO
from prefcli.health.repetition import LOOPING
from prefcli.metrics import METRICS, Row, is_tie, metric
from prefcli.report.run_data import Run, format_value

Level = Literal["good", "note", "warning", "error"]

COMPARED = (
    "reward",
    "objective/kl",
    "completions/mean_length",
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "logps/chosen",
    "logps/rejected",
    "perplexity",
    "reference_kl",
    "mean_token_accuracy",
    "samples_repeated",
)
"""Metrics that the log, the page and the model card compare; plots show the others."""

_REBOUND = 1.02
"""Ratio of the last eval loss to the lowest from which it counts as risen again."""
_LAST_ROWS = 5
"""Training rows at the end of a run that are averaged."""
_FEW_ROWS = 50
"""Number of held-out rows below which metrics are noisy."""
_LENGTH_GAP = 0.2
"""Difference between accuracies on longer and shorter chosen responses that counts as a bias."""


@dataclass(frozen=True)
class Change:
    """A held-out metric at the first and at the last evaluation."""

    key: str
    first: float | None
    last: float | None
    unchanged: bool
    compared: bool
    """False if there is no first value, or it says nothing."""

    @property
    def title(self) -> str:
        return METRICS[self.key].title

    def cells(self) -> tuple[str, str, str, str]:
        """Return the row of a table: name, first and last value, and whether they differ."""
        name = "eval loss" if self.key == "loss" else self.title
        first = format_value(self.key, self.first) if self.compared else ""
        significance = "no significant change" if self.unchanged else ""
        return name, first, format_value(self.key, self.last), significance

    def __str__(self) -> str:
        name, first, last, significance = self.cells()
        arrow = f"{first} -> " if first else ""
        return f"{name} {arrow}{last}{f', {significance}' if significance else ''}"


def changes(run: Run) -> list[Change]:
    """Return how each held-out metric changed between the first and the last evaluation."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.model_eval
    result = []
    for key in COMPARED:
        if key not in last or METRICS[key].superseded_by in last:
            continue
        before, after = first.get(key), last[key]
        always_zero = run.ties_at_start and key == "rewards/margins"
        # A new reward head scores every text 0.
        tie = run.trains_reward and is_tie(first, "rewards/accuracies") and "accuracies" in key
        compared = first is not last and not always_zero and not tie and before is not None
        unchanged = (
            compared
            and before is not None
            and after is not None
            and (
                is_unchanged(key, before, after, run.eval_rows)
                or (key == "reward" and abs(after - before) <= score_error(first, last, run))
            )
        )
        result.append(Change(key, before, after, unchanged=unchanged, compared=compared))
    return result


def is_unchanged(key: str, before: float, after: float, rows: int | None = None) -> bool:
    """Return whether a difference is within the metric's tolerance or sampling error.

    rows: number of rows that an accuracy is taken over.
    """
    within_error = "accuracies" in key and abs(after - before) <= accuracy_error(rows)
    return within_error or metric(key).is_close(before, after)


def accuracy_error(rows: int | None) -> float:
    """Return two standard errors of an accuracy of one half over so many pairs."""
    return 1 / math.sqrt(rows) if rows else 0.05


def score_error(first: Row, last: Row, run: Run) -> float:
    """Return two standard errors of the change of a mean score; 0 if its spread is not known."""
    spreads = [row.get("reward_std") for row in (first, last)]
    if not run.eval_rows or None in spreads:
        return 0.0
    return 2 * math.sqrt(sum(float(std or 0.0) ** 2 for std in spreads) / run.eval_rows)


def ruined(run: Run) -> list[str]:
    """Return the reasons why a finished run's model is unusable, if there are any."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.model_eval
    reasons = _opposite_labels(run)
    before, after = first.get("loss"), last.get("loss")
    if "loss" in last and after is None:
        reasons.append("the model is broken: its held-out loss is not finite")
    elif (
        before and after and before > 0 and after > MAX_RATIO * before
    ) and not run.scores_completions:
        reasons.append(
            f"the model got much worse: its held-out loss is {after / before:.1f} times that at "
            f"the start. {_to_move_less(run)}"
        )
    rejected = last.get("logps/rejected_per_token")
    reported = any(
        entry.get("rule") == "collapse" and entry.get("level") in ("warn", "stop")
        for entry in run.advice
    )
    if reported or (rejected is not None and rejected < -FLOOR):
        value = (
            ""
            if rejected is None
            else f" (rejected responses at {format_value('logps/rejected_per_token', rejected)} "
            "nats per token)"
        )
        cure = _to_move_less(run, run.method_advice("sft_term"))
        reasons.append(f"the distribution collapsed{value}. {cure}")
    return reasons


def _to_move_less(run: Run, *others: str | None) -> str:
    """Return a sentence on how the policy would move less. others: further changes."""
    changes = ["lower the learning rate", run.method_advice("weaken"), *others]
    known = [change for change in changes if change]
    sentence = ", ".join(known[:-1]) + " or " + known[-1] if len(known) > 1 else known[0]
    return sentence[0].upper() + sentence[1:]


def _opposite_labels(run: Run) -> list[str]:
    """Return the reason if train and eval accuracies are on opposite sides of chance."""
    held_out = run.model_eval.get("rewards/accuracies")
    last = [a for row in run.rows[-_LAST_ROWS:] if (a := row.get("rewards/accuracies")) is not None]
    if held_out is None or not last:
        return []
    error = accuracy_error(run.eval_rows)
    trained = sum(last) / len(last)
    if held_out >= 0.5 - error or trained <= 0.5 + error:
        return []
    return [
        f"the labels of data.eval look opposite to those of data.train: accuracy {trained:.2f} on "
        f"training pairs and {held_out:.2f} on held-out ones. Swap chosen and rejected of one"
    ]


def judge(run: Run) -> tuple[Level, str]:
    """Return what the last evaluation says about the model."""
    if not run.evals:
        return "note", "nothing was evaluated, since the recipe has no data.eval"
    first, last = run.evals[0], run.model_eval
    repeated = last.get("samples_repeated")
    if repeated is not None and repeated > LOOPING and _risen(first, last, "samples_repeated"):
        cure = _to_move_less(run, run.method_advice("sft_term"))
        return "warning", (
            f"greedy answers loop: {repeated:.0%} of their 4-grams repeat earlier ones. {cure}"
        )
    accuracy = last.get("rewards/accuracies")
    if accuracy is not None:
        margin = last.get("rewards/margins")
        if run.ties_at_start and first is not last and margin is not None and not margin:
            return "warning", (
                "the policy did not move from its reference, so that all pairs are ties: check "
                "the learning rate and the number of steps"
            )
        start = first.get("rewards/accuracies") if first is not last else None
        if run.trains_reward and is_tie(first, "rewards/accuracies"):
            start = None
        return _judge_accuracy(accuracy, start, run)
    if run.scores_completions and first is not last:
        return _judge_score(first, last, run)
    before, after = first.get("loss"), last.get("loss")
    if first is last or before is None or after is None:
        return "note", "there is only one evaluation, so nothing can be compared"
    if is_unchanged("loss", before, after):
        return "warning", "the held-out loss did not change"
    text = f"from {format_value('loss', before)} to {format_value('loss', after)}"
    if after > before:
        return "warning", f"the held-out loss rose {text}"
    margin = last.get("rewards/margins")
    if margin is not None and margin <= 0:
        return "warning", "held-out rewards of desirable responses are not above undesirable ones"
    if margin is not None:
        return "good", f"desirable held-out responses have {margin:.4f} more reward"
    return "good", f"the held-out loss fell {text}"


def _judge_score(first: Row, last: Row, run: Run) -> tuple[Level, str]:
    """Judge a policy that a judge has scored before and after."""
    before, after = first.get("reward"), last.get("reward")
    if before is None or after is None:
        return "warning", "the judge scored no completion of an evaluation"
    distance = format_value("objective/kl", last.get("objective/kl"))
    text = (
        f"from {format_value('reward', before)} to {format_value('reward', after)}, {distance} "
        "nats per completion from the reference"
    )
    if is_unchanged("reward", before, after):
        return "warning", f"the score of held-out completions did not change: {text}"
    if abs(after - before) <= score_error(first, last, run):
        return "note", f"the score of held-out completions changed within its error: {text}"
    if after < before:
        return "warning", f"the score of held-out completions fell {text}"
    return "good", f"the score of held-out completions rose {text}"


def _risen(first: Row, last: Row, key: str) -> bool:
    before, after = first.get(key), last.get(key)
    return before is not None and after is not None and after - before > METRICS[key].abs_tol


def _judge_accuracy(accuracy: float, start: float | None, run: Run) -> tuple[Level, str]:
    """Judge an accuracy on held-out pairs. start: that of the first evaluation, if there is one."""
    rows, model = run.eval_rows, run.subject
    error = accuracy_error(rows)
    if abs(accuracy - 0.5) <= error and rows and rows < _FEW_ROWS:
        return "note", f"{rows} held-out pairs are too few to distinguish this accuracy from chance"
    if accuracy < 0.5 - error:
        return "warning", (
            f"{model} prefers the rejected side of held-out pairs (accuracy {accuracy:.2f}): "
            "labels may be swapped, or train and eval pairs labelled by different rules"
        )
    if accuracy < 0.6 or accuracy <= 0.5 + error:
        changes = ["raise the learning rate", run.method_advice("strengthen")]
        cure = " or ".join(change for change in changes if change)
        return "warning", (
            f"{model} hardly separates chosen from rejected: {cure}, unless the labels are nearly "
            "random"
        )
    if start is not None and is_unchanged("rewards/accuracies", start, accuracy, rows):
        return "note", f"{model} separates chosen from rejected about as well as at the start"
    if start is not None and accuracy < start:
        return "warning", f"{model} separates chosen from rejected less well than at the start"
    if accuracy > 0.9:
        return "good", f"{model} separates chosen from rejected on held-out pairs"
    return "good", f"{model} prefers the chosen side in {100 * accuracy:.0f} % of held-out pairs"


def observations(run: Run) -> list[str]:
    """Return what else the evaluations show."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.model_eval
    lines = []
    if "best_step" in run.record:
        lines.append(f"early stopping restored the checkpoint of step {run.record['best_step']}")
    accuracy = last.get("rewards/accuracies")
    if accuracy is not None and 0.6 <= accuracy <= 0.9 and not run.trains_reward:
        # Several reruns of huggingface/alignment-handbook's zephyr-7b-dpo-full and -qlora.
        lines.append("for comparison: 7B models reach 74 to 77 % with DPO on UltraFeedback")
    if first is not last:
        lines += [*_likelihood(first, last), *_loss(run)]
    kl = last.get("reference_kl")
    if kl is not None and kl < METRICS["reference_kl"].abs_tol:
        lines.append("the policy has hardly moved from its reference")
    longer = last.get("rewards/accuracies_chosen_longer")
    shorter = last.get("rewards/accuracies_chosen_shorter")
    if longer is not None and shorter is not None and abs(longer - shorter) > _LENGTH_GAP:
        lines.append(
            f"accuracy is {longer:.2f} where the chosen response is longer and {shorter:.2f} where "
            f"it is shorter: part of what {run.subject} learned is length"
        )
    repeated = last.get("samples_repeated")
    if repeated is not None and repeated > LOOPING and not _risen(first, last, "samples_repeated"):
        lines.append(
            f"greedy answers loop, as they did at the start: {repeated:.0%} of their 4-grams repeat"
        )
    if run.eval_rows is not None and run.eval_rows < _FEW_ROWS:
        lines.append(f"only {run.eval_rows} rows were held out, so these metrics are noisy")
    return lines


def _likelihood(first: Row, last: Row) -> list[str]:
    for key, unit in (("logps/chosen_per_token", " nats per token"), ("logps/chosen", " nats")):
        before, after = first.get(key), last.get(key)
        if before is None or after is None:
            continue
        if after < before and not is_unchanged(key, before, after):
            return [
                f"chosen responses became less likely, by {before - after:.3g}{unit}. This is "
                "common, since rejected ones usually fall faster; watch it if it is large"
            ]
        return []
    return []


def _loss(run: Run) -> list[str]:
    losses = [(row["loss"], int(row["step"] or 0)) for row in run.evals if "loss" in row]
    finite = [(loss, step) for loss, step in losses if loss is not None]
    if len(finite) < 2 or "best_step" in run.record or run.scores_completions:
        return []
    before, after = finite[0][0], finite[-1][0]
    lowest, step = min(finite)
    if (
        after > _REBOUND * lowest > 0
        and lowest < before
        and not is_unchanged("loss", before, lowest)
    ):
        return [
            f"eval loss was lowest at step {step} ({format_value('loss', lowest)}) and has risen "
            "since. Train for fewer epochs or use training.early_stopping to keep that model"
        ]
    if MAX_RATIO * before >= after > before and not is_unchanged("loss", before, after):
        return [
            f"eval loss ended above its start ({format_value('loss', before)} -> "
            f"{format_value('loss', after)}): {run.subject} is overtrained"
            + (
                ""
                if run.trains_reward
                else ". Such models can still answer well (zephyr-7b-beta); look at the samples"
            )
        ]
    return []
