"""The outcome of a run as text, for the log, the report and the model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefcli.health import LEVEL_NAMES
from prefcli.report.held_out import Change, Level, changes, judge, observations, ruined
from prefcli.report.run_data import Run, as_dict, format_value


@dataclass(frozen=True)
class Verdict:
    """How a run ended and how good its model is."""

    state: str
    """finished, diverged, stopped (by a health rule), failed, preempted, interrupted, running (or
    killed), or unknown."""
    level: Level
    title: str
    judgement: str = ""
    """What the title says about the model of a finished run."""
    details: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    eval_steps: tuple[int, int] = (0, 0)
    """Steps of the first and of the last evaluation."""

    def lines(self) -> list[str]:
        """Return the lines of a log: metrics first, then what they mean."""
        return [*map(str, self.changes), *filter(None, [self.judgement]), *self.details]


def verdict(run: Run) -> Verdict:
    """Return the outcome of a run, however little of its folder is there."""
    steps = (
        (int(run.evals[0]["step"] or 0), int(run.model_eval["step"] or 0)) if run.evals else (0, 0)
    )
    if run.status != "finished":
        state, level, title, details = _unfinished(run)
        details = [*details, *_health(run)]
        return Verdict(state, level, title, details=details, changes=changes(run), eval_steps=steps)
    reasons = ruined(run)
    level, judgement = ("error", reasons[0]) if reasons else judge(run)
    start = "Finished: " if level in ("good", "note") else "Finished, but "
    details = [*reasons[1:], *observations(run), *_health(run)]
    return Verdict(
        "finished", level, start + judgement, judgement, details, changes(run), eval_steps=steps
    )


_NO_MODEL = "no final model was written"


def _unfinished(run: Run) -> tuple[str, Level, str, list[str]]:
    """Return (state, level, title, details) of a run without a final model."""
    why = str(run.record.get("why") or "").strip()
    no_model = [] if _NO_MODEL in why else [_NO_MODEL]
    at = f" at step {run.last_step}" if run.rows or run.evals else " before the first step"
    stops = [entry for entry in run.advice if entry.get("level") == "stop"]
    if run.status == "diverged" and stops and stops[-1].get("rule") != "finite":
        message = str(stops[-1].get("message") or why)
        title = f"Stopped{at} by the health rule {stops[-1].get('rule')}"
        return "stopped", "error", title, [message, _NO_MODEL]
    if run.status == "diverged":
        return "diverged", "error", f"Diverged{at}", [*filter(None, [why]), *no_model]
    if run.status == "failed":
        gate = as_dict(run.record.get("check_sft"))
        if not why and gate.get("passed") is False:
            perplexity = format_value("perplexity", gate.get("perplexity"))
            why = f"check-sft failed: perplexity {perplexity} is above {gate.get('max_perplexity')}"
        return "failed", "error", f"Failed{at}", [*filter(None, [why]), *no_model]
    if run.status in ("preempted", "interrupted"):
        title = f"{run.status.capitalize()}{at}"
        return run.status, "note", title, [*filter(None, [why]), *no_model]
    if run.status == "running":
        written = f"the last row of metrics.jsonl was written at {run.last_written}"
        title = f"Not finished: still running, or killed{at}"
        return "running", "note", title, [written] * bool(run.last_written)
    return "unknown", "note", "How this run ended is unknown, since it has no run.json", []


def _health(run: Run) -> list[str]:
    """Return one line that counts the health rules by the most severe level of each."""
    severities = list(LEVEL_NAMES)[::-1]
    worst: dict[str, str] = {}
    for entry in run.advice:
        rule, level = str(entry.get("rule", "?")), str(entry.get("level"))
        level = level if level in severities else "note"
        worst[rule] = min(level, worst.get(rule, "note"), key=severities.index)
    counts = []
    for level in severities:
        rules = [rule for rule, rule_level in worst.items() if rule_level == level]
        if rules:
            plural = "s" if len(rules) > 1 else ""
            counts.append(f"{len(rules)} {LEVEL_NAMES[level]}{plural} ({', '.join(rules)})")
    return [f"health: {', '.join(counts)}"] if counts else []


def as_document(run: Run, outcome: Verdict) -> dict[str, Any]:
    """Return what `prefcli report --json` prints about a run."""
    return {
        "folder": str(run.path),
        "method": run.method,
        "status": run.status,
        "state": outcome.state,
        "level": outcome.level,
        "verdict": outcome.title,
        "details": outcome.details,
        "metrics": {
            change.key: {"first": change.first if change.compared else None, "last": change.last}
            for change in outcome.changes
        },
        "last_eval": dict(run.model_eval) if run.evals else {},
        "last_row": dict(run.rows[-1]) if run.rows else {},
        "step": run.last_step,
        "health": run.advice,
        "expected": run.expected_results,
        "unreadable_lines": run.unreadable,
    }
