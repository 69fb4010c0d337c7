"""report.html: one run as a self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prefcli.health import LEVEL_NAMES
from prefcli.report.html import render
from prefcli.report.panels import MAX_POINTS, PanelData, run_panels
from prefcli.report.plots.lines import Mark, line_plot
from prefcli.report.plots.plot import Plot
from prefcli.report.ranked_rows import ranking
from prefcli.report.run_data import (
    Run,
    as_dict,
    as_list,
    format_lineage,
    format_value,
    read_run,
)
from prefcli.report.samples import samples
from prefcli.report.settings import own_settings, text
from prefcli.report.tiles import tiles
from prefcli.report.verdict import verdict
from prefcli.text import counted, format_duration

_COLOURS = {"note": "note", "warn": "warning", "stop": "error"}
_LARGE_PLOTS = 4
_LABEL_WIDTH = 0.04
"""Share of a plot's width that the number of a mark takes."""


def write_report(folder: Path) -> Path:
    """Write report.html of a run folder, in whatever state the run is. May raise OSError."""
    run = read_run(folder)
    path = run.path / "report.html"
    path.write_text(run_page(run), encoding="utf-8", errors="backslashreplace")
    return path


def run_page(run: Run, *, refresh: int | None = None) -> str:
    """Return the page of one run as HTML. refresh: seconds after which a browser reads it again."""
    panels = list(run_panels(run))
    steps = step_range(panels)
    plot_marks = marks(run.advice, steps)
    splits = as_dict(run.record.get("data"))
    outcome = verdict(run)
    tiles_of, shown = tiles(run, outcome)
    large, folded = plots(panels, plot_marks, steps)
    return render(
        "run.html",
        {
            "refresh": refresh,
            "name": run.name,
            "method": run.method,
            "lineage": format_lineage(run.lineage, run.method),
            "summary": ", ".join(_summary(run)),
            "verdict": outcome,
            "tiles_of": tiles_of,
            "tiles": shown,
            "settings": own_settings(run),
            "expected": run.expected_results,
            "expected_source": run.expected_source,
            "advice": [_advice(at, entry) for at, entry in enumerate(run.advice, start=1)],
            "plots": (large, folded),
            "is_smoothed": any(plot.is_smoothed for _, plot in (*large, *folded)),
            "has_held_out": any(panel.has_held_out for panel in panels),
            "subsampled": is_subsampled(run),
            "ranking": ranking(run),
            "samples": samples(run),
            "data": [_split(name, as_dict(split)) for name, split in splits.items()],
            "facts": list(_facts(run)),
            "recipe": run.recipe_text,
            "effective": [(k, text(v)) for k, v in as_dict(run.record.get("effective")).items()],
            "unreadable": run.unreadable,
        },
    )


def plots(
    panels: Sequence[PanelData], plot_marks: Sequence[Mark], steps: tuple[float, float]
) -> tuple[list[tuple[PanelData, Plot]], list[tuple[PanelData, Plot]]]:
    """Return the plots that a page shows large, and those that it folds."""
    ordered = sorted(panels, key=lambda panel: not panel.is_primary)
    laid_out = [(panel, line_plot(panel, plot_marks, steps)) for panel in ordered]
    return laid_out[:_LARGE_PLOTS], laid_out[_LARGE_PLOTS:]


def step_range(panels: Sequence[PanelData]) -> tuple[float, float]:
    """Return the first and the last step of all panels."""
    steps = [step for panel in panels for line in panel.lines for step, _ in line.points]
    return min(steps, default=0.0), max(steps, default=1.0)


def is_subsampled(run: Run) -> bool:
    return max(len(run.rows), len(run.evals)) > MAX_POINTS


def marks(advice: Sequence[Mapping[str, Any]], steps: tuple[float, float]) -> list[Mark]:
    """Return a mark per advice; where numbers would overlap, the first mark has a range."""
    result: list[Mark] = []
    room = _LABEL_WIDTH * max(steps[1] - steps[0], 1)
    labelled = -1
    for number, entry in enumerate(advice, start=1):
        step, colour = float(entry["step"]), _COLOURS.get(str(entry.get("level")), "note")
        if labelled >= 0 and step - result[labelled].step < room:
            first = result[labelled].number.split("-")[0]
            result[labelled] = result[labelled]._replace(number=f"{first}-{number}", rule="")
            result.append(Mark(step, "", "", colour))
        else:
            labelled = len(result)
            result.append(Mark(step, str(number), str(entry.get("rule", "")), colour))
    return result


def _advice(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    level = str(entry.get("level"))
    return {
        "number": number,
        "level": level if level in LEVEL_NAMES else "note",
        "level_name": LEVEL_NAMES.get(level, "note"),
        "step": int(entry["step"]),
        "rule": str(entry.get("rule", "?")),
        "message": str(entry.get("message") or entry.get("seen") or ""),
    }


def _split(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of a split, and a line per reason why rows were dropped or reported."""
    dropped = as_dict(split.get("dropped"))
    lines = [f"dropped: {count} rows, {reason}" for reason, count in dropped.items()]
    for key, finding in as_dict(split.get("findings")).items():
        entry = as_dict(finding)
        share = entry.get("share")
        percent = f" ({100 * share:.3g} %)" if isinstance(share, float) else ""
        note = f": {entry['note']}" if entry.get("note") else ""
        lines.append(f"{key}: {entry.get('count')} of {entry.get('of')} rows{percent}{note}")
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


def _summary(run: Run) -> Iterator[str]:
    """Yield what ran, where and for how long."""
    steps, planned = run.record.get("steps", run.last_step), as_dict(run.record.get("plan"))
    total = planned.get("steps")
    unfinished = isinstance(total, int) and isinstance(steps, int) and steps < total
    yield f"step {steps} of {total}" if unfinished else counted(int(steps), "step")
    if (duration := _duration(run.record)) is not None:
        yield f"{duration} in all"
    if name := as_dict(run.record.get("device")).get("name"):
        yield f"on {name}"
    if started := str(run.record.get("started", "")):
        yield f"started {started[:16].replace('T', ' ')}"


def _duration(record: Mapping[str, Any]) -> str | None:
    """Return the time from the first start to the end, if both are known."""
    try:
        start, end = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
        return format_duration((end - start).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    record = run.record
    device = as_dict(record.get("device"))
    yield "Folder", str(run.path)
    yield "Started", str(record.get("started", "-"))
    yield "Ended", str(record.get("finished", "-"))
    if (duration := _duration(record)) is not None:
        yield "Duration", duration
    yield "Steps", str(record.get("steps", f"{run.last_step} so far"))
    gate = as_dict(record.get("check_sft"))
    if gate.get("perplexity") is not None:
        outcome = "passed" if gate.get("passed") else "failed"
        perplexity = format_value("perplexity", gate["perplexity"])
        yield "check-sft", f"perplexity {perplexity}, {outcome}"
    yield "Device", f"{device.get('name', '-')} ({device.get('kind', '-')})"
    speed = [v for row in run.rows if (v := row.get("tokens_per_second")) is not None]
    if speed:
        # The first step includes warm-up, and an evaluation may fall between two rows.
        yield "Tokens per second", f"{sorted(speed)[len(speed) // 2]:,.0f} (median of the rows)"
    memory = [v for row in run.rows if (v := row.get("memory_gib")) is not None]
    if memory:
        yield "Peak memory", f"{max(memory):.2f} GiB"
    for at, resumed in enumerate(as_list(record.get("resumed")), start=1):
        entry = as_dict(resumed)
        yield f"Resume {at}", f"{entry.get('at')}, from {entry.get('checkpoint')}"
    versions = {"prefcli": record.get("prefcli", "-"), **as_dict(record.get("versions"))}
    yield "Versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "Python", str(record.get("python", "-"))
