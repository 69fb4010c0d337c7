"""A run as one page that needs nothing else: what became of it, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli.report.html import drawn, ends_of, page
from prefcli.report.metrics import figure
from prefcli.report.panels import MOST, Panel, panels
from prefcli.report.plots import Mark
from prefcli.report.run_data import Run, as_dict, as_list, read_run
from prefcli.report.samples import samples
from prefcli.report.verdict import verdict

_WORDS = {"note": "note", "warn": "warning", "stop": "stop"}
_COLOURS = {"note": "note", "warn": "warning", "stop": "error"}
_ROOM = 0.04
"""Share of the picture's width that the number of a mark takes."""


def write_report(folder: Path) -> Path:
    """report.html of a run folder, as far as the run has come. OSError if it can't be written."""
    run = read_run(folder)
    path = run.path / "report.html"
    path.write_text(run_page(run), encoding="utf-8", errors="backslashreplace")
    return path


def run_page(run: Run) -> str:
    shown = list(panels(run))
    ends = ends_of(shown)
    data = as_dict(run.run.get("data"))
    return page(
        "run.html",
        {
            "name": run.name,
            "method": run.method,
            "lineage": lineage(run),
            "verdict": verdict(run),
            "expected": compared_with_expected(run),
            "expected_source": run.at("expected.source"),
            "advice": [_advice(at, each) for at, each in enumerate(run.health, start=1)],
            "drawn": drawn(shown, marks(run.health, ends), ends),
            "has_held_out": any(panel.has_held_out for panel in shown),
            "thinned": is_thinned(run),
            "samples": samples(run),
            "data": [_split(name, as_dict(split)) for name, split in data.items()],
            "facts": list(_facts(run, shown)),
            "recipe": run.recipe_text,
            "effective": [(k, _told(v)) for k, v in as_dict(run.run.get("effective")).items()],
            "unreadable": run.unreadable,
        },
    )


def is_thinned(run: Run) -> bool:
    return max(len(run.rows), len(run.evals)) > MOST


def lineage(run: Run) -> str:
    """base -> sft (runs/sft/model) -> dpo (this run)"""
    stages = [as_dict(stage) for stage in as_list(run.run.get("lineage"))]
    words = [
        f"{stage.get('model')}"
        if stage.get("stage") == "start"
        else f"{stage.get('stage')} ({stage.get('model')}"
        + (f", adapter: {stage['adapter']})" if stage.get("adapter") else ")")
        for stage in stages
    ]
    return " -> ".join([*words, f"{run.method} (this run)"])


def marks(health: Sequence[Mapping[str, Any]], ends: tuple[float, float]) -> list[Mark]:
    """Where the rules spoke; of those too near for their numbers, the first bears them all."""
    found: list[Mark] = []
    room = _ROOM * max(ends[1] - ends[0], 1)
    labelled = -1
    for number, each in enumerate(health, start=1):
        step, colour = float(each["step"]), _COLOURS.get(str(each.get("level")), "note")
        if labelled >= 0 and step - found[labelled].step < room:
            first = found[labelled].number.split("-")[0]
            found[labelled] = found[labelled]._replace(number=f"{first}-{number}")
            found.append(Mark(step, "", colour))
        else:
            labelled = len(found)
            found.append(Mark(step, str(number), colour))
    return found


def _advice(number: int, each: Mapping[str, Any]) -> dict[str, Any]:
    level = str(each.get("level"))
    return {
        "number": number,
        "level": level if level in _WORDS else "note",
        "word": _WORDS.get(level, "note"),
        "step": int(each["step"]),
        "check": str(each.get("check", "?")),
        "message": str(each.get("message") or each.get("seen") or ""),
    }


def compared_with_expected(run: Run) -> dict[str, dict[str, Any]]:
    """The published figures beside the run's, as run.json has them."""
    needed = {"value", "low", "high", "within"}
    found = as_dict(run.run.get("expected"))
    return {key: as_dict(entry) for key, entry in found.items() if needed <= as_dict(entry).keys()}


def _split(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of a split, and a line for each way in which rows were lost or are doubtful."""
    dropped = as_dict(split.get("dropped"))
    lines = [f"dropped: {count} rows, {why}" for why, count in dropped.items()]
    for key, found in as_dict(split.get("findings")).items():
        entry = as_dict(found)
        share = entry.get("share")
        much = f" ({100 * share:.3g} %)" if isinstance(share, float) else ""
        note = f": {entry['note']}" if entry.get("note") else ""
        lines.append(f"{key}: {entry.get('count')} of {entry.get('of')} rows{much}{note}")
    labels = as_dict(split.get("labels"))
    if labels:
        lines.append("labels: " + ", ".join(f"{count} {label}" for label, count in labels.items()))
    return {
        "name": name,
        "read": _count(split.get("read")),
        "kept": _count(split.get("kept")),
        "dropped": _count(sum(n for n in dropped.values() if isinstance(n, int))),
        "tokens": _count(split.get("tokens")),
        "lines": [*lines, *map(str, as_list(split.get("notes")))],
    }


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _facts(run: Run, shown: Sequence[Panel]) -> Iterator[tuple[str, str]]:
    told = run.run
    device = as_dict(told.get("device"))
    yield "Folder", str(run.path)
    yield "Started", str(told.get("started", "-"))
    yield "Ended", str(told.get("finished", "-"))
    yield "Steps", str(told.get("steps", f"{run.last_step} so far"))
    gate = as_dict(told.get("check_sft"))
    if gate.get("perplexity") is not None:
        verdict = "passed" if gate.get("passed") else "said no"
        yield "check-sft", f"perplexity {figure(gate['perplexity'])}, {verdict}"
    yield "Machine", f"{device.get('name', '-')} ({device.get('kind', '-')})"
    speed = [v for row in run.rows if (v := row.get("tokens_per_second")) is not None]
    if speed:
        # The first step pays for warm caches, and one evaluation may fall between two rows.
        yield "Tokens a second", f"{sorted(speed)[len(speed) // 2]:,.0f} (median of the rows)"
    memory = [v for row in run.rows if (v := row.get("memory_gib")) is not None]
    if memory:
        yield "Peak memory", f"{max(memory):.2f} GiB"
    for at, resumed in enumerate(as_list(told.get("resumed")), start=1):
        entry = as_dict(resumed)
        yield f"Resume {at}", f"{entry.get('at')}, from {entry.get('checkpoint')}"
    versions = {"prefcli": told.get("prefcli", "-"), **as_dict(told.get("versions"))}
    yield "Versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "Python", str(told.get("python", "-"))


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
