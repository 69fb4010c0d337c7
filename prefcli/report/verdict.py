"""What became of a run, in words and figures: one home for the log, the report and the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prefcli.report.metrics import METRICS, SUMS, chance, figure, same
from prefcli.report.run_data import Row, Run, as_dict

Level = Literal["good", "note", "warning", "error"]

_COMPARED = (
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
)
"""Of the held-out metrics, those that are told; all others are in the report's curves."""

_LOST = 1.5
"""Times the loss at the start; zephyr-7b-beta ended at 1.08 times its start, and is fine."""
_COLLAPSED = -50.0
"""Nats a token of the rejected side; a practical rule of the DPO literature."""
_RISEN = 1.02
"""Times the lowest loss, from which on it has risen since. A proposal."""
_FEW = 50
"""Held-out rows, below which figures are rough. A proposal."""
_BY_LENGTH = 0.2
"""Difference of accuracies from which on length explains part of them. A proposal."""


@dataclass(frozen=True)
class Gain:
    """A held-out metric from the first evaluation to the last."""

    key: str
    first: float | None
    last: float | None
    same: bool
    compared: bool
    """False where the first says nothing, or is the last as well."""

    @property
    def words(self) -> str:
        return METRICS[self.key].words

    def __str__(self) -> str:
        name = "eval loss" if self.key == "loss" else self.words
        if not self.compared:
            return f"{name} {figure(self.last)}"
        end = ", no change to speak of" if self.same else ""
        return f"{name} {figure(self.first)} -> {figure(self.last)}{end}"


@dataclass(frozen=True)
class Verdict:
    state: str
    """finished, diverged, stopped (by a health rule), failed, preempted, running (or killed),
    unknown."""
    level: Level
    title: str
    judged: str = ""
    """What the title says of a finished run, alone."""
    words: list[str] = field(default_factory=list)
    """What there is to say beside the title."""
    gains: list[Gain] = field(default_factory=list)
    steps: tuple[int, int] = (0, 0)
    """Of the first and the last evaluation."""

    def lines(self) -> list[str]:
        """For a log: figures first, then what they mean."""
        return [*map(str, self.gains), *filter(None, [self.judged]), *self.words]


def verdict(run: Run) -> Verdict:
    """Of a whole run folder; never raises for what is missing in it."""
    gains = held_out(run)
    steps = (int(run.evals[0]["step"]), int(run.kept["step"])) if run.evals else (0, 0)
    if run.status != "finished":
        state, level, title, words = _unfinished(run)
        return Verdict(state, level, title, words=[*words, *_health(run)], gains=gains, steps=steps)
    lost = _ruined(run)
    level, judged = ("error", lost[0]) if lost else _judge(run)
    joint = {"good": "Finished: ", "note": "Finished: "}.get(level, "Finished, but ")
    words = [*lost[1:], *_in_words(run), *_health(run)]
    return Verdict("finished", level, joint + judged, judged, words, gains, steps)


def held_out(run: Run) -> list[Gain]:
    """First evaluation -> last, for all that is told."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.kept
    gains = []
    for key in _COMPARED:
        if key not in last or SUMS.get(key) in last:
            continue
        before, after = first.get(key), last[key]
        tied = run.ties_at_start and key == "rewards/margins"  # 0, by definition
        compared = first is not last and not tied and before is not None
        no_change = (
            compared
            and before is not None
            and after is not None
            and same(key, before, after, run.eval_rows)
        )
        gains.append(Gain(key, before, after, same=no_change, compared=compared))
    return gains


def _unfinished(run: Run) -> tuple[str, Level, str, list[str]]:
    why = str(run.run.get("why") or "").strip()
    no_model = [] if _NO_MODEL in why else [_NO_MODEL]
    at = f" at step {run.last_step}" if run.rows or run.evals else " before its first step"
    stops = [advice for advice in run.health if advice.get("level") == "stop"]
    if run.status == "diverged" and stops and stops[-1].get("check") != "finite":
        said = str(stops[-1].get("message") or why)
        title = f"Stopped{at} by the health rule {stops[-1].get('check')}"
        return "stopped", "error", title, [said, "no final model was written"]
    if run.status == "diverged":
        return "diverged", "error", f"Diverged{at}", [*filter(None, [why]), *no_model]
    if run.status == "failed":
        gate = as_dict(run.run.get("check_sft"))
        if not why and gate.get("passed") is False:
            why = (
                f"check-sft said no: perplexity {figure(gate.get('perplexity'))} is above "
                f"{gate.get('max_perplexity')}"
            )
        return "failed", "error", f"Failed{at}", [*filter(None, [why]), *no_model]
    if run.status == "preempted":
        words = [*filter(None, [why]), *no_model]
        return "preempted", "note", f"Pre-empted{at}, not finished", words
    if run.status == "running":
        when = [f"the last row of metrics.jsonl was written at {run.written}"] * bool(run.written)
        return "running", "note", f"Not finished: still running, or killed{at}", when
    return "unknown", "note", "There is no run.json that says how this run ended", []


_NO_MODEL = "no final model was written"


def _ruined(run: Run) -> list[str]:
    """Why a run that came to its end is not to be called good."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.kept
    found = []
    before, after = first.get("loss"), last.get("loss")
    if "loss" in last and after is None:
        found.append("the model looks ruined: its loss on held-out rows is not finite")
    elif before and after and before > 0 and after > _LOST * before:
        found.append(
            f"the model looks ruined: its loss on held-out rows is {after / before:.1f} times that "
            "at the start; lower the learning rate, raise beta, or train for less long"
        )
    rejected = last.get("logps/rejected_per_token")
    collapse = any(
        str(advice.get("check", "")).startswith("collapse")
        and advice.get("level") in ("warn", "stop")
        for advice in run.health
    )
    if collapse or (rejected is not None and rejected < _COLLAPSED):
        figures = f" (rejected at {figure(rejected)} nats a token)" if rejected is not None else ""
        found.append(f"the distribution collapsed{figures}: raise beta or add an SFT term")
    return found


def _judge(run: Run) -> tuple[Level, str]:
    """What the last evaluation means (the practical rules of the DPO literature)."""
    if not run.evals:
        return "note", "no eval data, so nothing held out was measured (data.eval)"
    first, last = run.evals[0], run.kept
    accuracy = last.get("rewards/accuracies")
    if accuracy is not None:
        start = first.get("rewards/accuracies") if first is not last else None
        return _by_accuracy(accuracy, start, run.eval_rows)
    before, after = first.get("loss"), last.get("loss")
    if first is last or before is None or after is None:
        return "note", "there is only one evaluation, so no change can be told"
    if same("loss", before, after):
        return "warning", "the loss on held-out rows is what it was at the start"
    if after > before:
        return "warning", f"the loss on held-out rows rose from {figure(before)} to {figure(after)}"
    margin = last.get("rewards/margins")
    if margin is not None and margin <= 0:
        return "warning", "held-out rewards of good answers are not above those of bad ones"
    if margin is not None:
        return "good", f"good answers earn {figure(margin)} more reward than bad ones, held out"
    return "good", f"the loss on held-out rows fell from {figure(before)} to {figure(after)}"


def _by_accuracy(accuracy: float, start: float | None, rows: int | None) -> tuple[Level, str]:
    stray = chance(rows)
    if abs(accuracy - 0.5) <= stray and rows and rows < _FEW:
        return "note", f"{rows} held-out pairs are too few to tell an accuracy from chance"
    if accuracy < 0.5 - stray:
        return "warning", (
            f"the policy prefers the rejected side on held-out rows (accuracy {accuracy:.2f}): "
            "labels swapped, or train and eval rows labelled by different rules"
        )
    if accuracy < 0.6 or accuracy <= 0.5 + stray:
        return "warning", (
            "the policy hardly tells chosen from rejected: learning rate too small, beta too "
            "high, or labels close to random"
        )
    if start is not None and same("rewards/accuracies", start, accuracy, rows):
        return "note", "the policy tells chosen from rejected about as well as at the start"
    if start is not None and accuracy < start:
        return "warning", "the policy tells chosen from rejected less well than at the start"
    if accuracy > 0.9:
        return "good", "the policy tells chosen from rejected on held-out rows"
    share = f"{100 * accuracy:.0f} %"
    return "good", f"the policy prefers the chosen side in {share} of the held-out pairs"


def _in_words(run: Run) -> list[str]:
    if not run.evals:
        return []
    first, last = run.evals[0], run.kept
    words = []
    if "best_step" in run.run:
        words.append(f"early stopping kept the model of step {run.run['best_step']}")
    accuracy = last.get("rewards/accuracies")
    if accuracy is not None and 0.6 <= accuracy <= 0.9:
        # Several people's reruns of huggingface/alignment-handbook's zephyr-7b-dpo-full and -qlora.
        words.append("for comparison: 7B models end DPO on UltraFeedback at 74 to 77 %")
    if first is not last:
        words += [*_likelihood(first, last), *_loss(run)]
    kl = last.get("reference_kl")
    if kl is not None and kl < METRICS["reference_kl"].least:
        words.append("the policy has hardly moved from its reference")
    longer = last.get("rewards/accuracies_chosen_longer")
    shorter = last.get("rewards/accuracies_chosen_shorter")
    if longer is not None and shorter is not None and abs(longer - shorter) > _BY_LENGTH:
        words.append(
            f"accuracy is {longer:.2f} where the chosen side is longer and {shorter:.2f} where it "
            "is shorter: part of what was learned is length"
        )
    if run.eval_rows is not None and run.eval_rows < _FEW:
        words.append(f"only {run.eval_rows} rows were held out, so these figures are rough")
    return words


def _likelihood(first: Row, last: Row) -> list[str]:
    for key, unit in (("logps/chosen_per_token", " nats a token"), ("logps/chosen", " nats")):
        before, after = first.get(key), last.get(key)
        if before is None or after is None:
            continue
        if after < before and not same(key, before, after):
            return [
                f"chosen responses became less likely than at the start, by "
                f"{before - after:.3g}{unit}; common with DPO, whose margin grows because "
                "rejected ones fall faster, and to be watched when it is large"
            ]
        return []
    return []


def _loss(run: Run) -> list[str]:
    losses = [(row["loss"], int(row["step"])) for row in run.evals if row.get("loss") is not None]
    if len(losses) < 2:
        return []
    if "best_step" in run.run:
        return []
    (before, _), (after, _) = losses[0], losses[-1]
    best, step = min(losses)
    if after > _RISEN * best > 0 and best < before and not same("loss", before, best):
        return [
            f"eval loss was lowest at step {step} ({figure(best)}) and has risen since: fewer "
            "epochs or early stopping would keep that model"
        ]
    if _LOST * before >= after > before and not same("loss", before, after):
        return [
            f"eval loss ended above its start ({figure(before)} -> {figure(after)}): over-trained, "
            "though such runs can still answer well (zephyr-7b-beta); look at the samples"
        ]
    return []


def _health(run: Run) -> list[str]:
    """Which rules spoke, each where it was loudest; their words stand in the log and the report."""
    loudest: dict[str, str] = {}
    for advice in run.health:
        check, level = str(advice.get("check", "?")), str(advice.get("level"))
        order = list(_LOUD)
        if level in _LOUD and order.index(level) < order.index(loudest.get(check, order[-1])):
            loudest[check] = level
        loudest.setdefault(check, order[-1])
    told = []
    for level, word in _LOUD.items():
        names = [check for check, found in loudest.items() if found == level]
        if names:
            told.append(f"{len(names)} {word}{'s' * (len(names) > 1)} ({', '.join(names)})")
    return [f"health: {', '.join(told)}"] if told else []


_LOUD = {"stop": "stop", "warn": "warning", "note": "note"}


def as_document(run: Run, found: Verdict) -> dict[str, Any]:
    """What `prefcli report --json` says of a run."""
    return {
        "folder": str(run.path),
        "method": run.method,
        "status": run.status,
        "state": found.state,
        "level": found.level,
        "verdict": found.title,
        "words": found.words,
        "figures": {
            gain.key: {"first": gain.first if gain.compared else None, "last": gain.last}
            for gain in found.gains
        },
        "last_eval": dict(run.kept) if run.evals else {},
        "last_row": dict(run.rows[-1]) if run.rows else {},
        "step": run.last_step,
        "health": run.health,
        "expected": as_dict(run.run.get("expected")),
        "unreadable_lines": run.unreadable,
    }
