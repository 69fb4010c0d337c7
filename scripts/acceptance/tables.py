"""The rows as Markdown, and as the last lines that a terminal shows."""

from __future__ import annotations

from itertools import groupby
from typing import Any

Row = dict[str, Any]

_SPEED = ("ms", "GiB", "of the product rate", "FLOPs")

_SHOWN = 11_500
"""Characters that are printed at the end."""


def _short(value: Any, most: int) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).replace("\n", " ").replace("|", "/")
    return text if len(text) <= most else text[: most - 1] + "…"


def table(rows: list[Row]) -> str:
    lines = ["| part | case | figure | value | bound | verdict |", "|---" * 6 + "|"]
    for row in rows:
        cells = [row["part"], row["case"], row["figure"], _short(row["value"], 300)]
        lines.append("| " + " | ".join([*cells, row["bound"] or "", row["verdict"]]) + " |")
    return "\n".join(lines) + "\n"


def speed_table(rows: list[Row]) -> list[str]:
    """Milliseconds of a step by arm, and what came of them."""
    values: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        case, _, pairs = row["case"].partition(", ")
        profile, _, figure = row["figure"].partition(": ")
        if row["part"] == "speed" and figure in _SPEED:
            tuning, _, arm = case.rpartition(" ")
            values.setdefault((f"{tuning}, {pairs}", profile), {})[f"{arm} {figure}"] = row["value"]
    if not values:
        return []
    arms = ("s0", "s1", "p0", "p1", "p2", "p3")
    lines = [
        "| tuning | profile | " + " | ".join(f"{arm} ms" for arm in arms) + " | p2/s0 | p2/s1 | "
        "FLOPs allow | s1, p2 of the product rate | GiB s1, p1, p2 |",
        "|---" * (len(arms) + 7) + "|",
    ]
    for (tuning, profile), of in values.items():

        def over(other: str, figure: str, of: dict[str, Any] = of) -> str:
            prefcli_value, other_value = of.get(f"p2 {figure}"), of.get(f"{other} {figure}")
            return f"{other_value / prefcli_value:.2f}" if prefcli_value and other_value else ""

        times = [f"{of[f'{arm} ms']:.0f}" if f"{arm} ms" in of else "" for arm in arms]
        shares = [str(of.get(f"{arm} of the product rate", "")) for arm in ("s1", "p2")]
        sizes = [str(of.get(f"{arm} GiB", "")) for arm in ("s1", "p1", "p2")]
        cells = [tuning, profile, *times, over("s0", "ms"), over("s1", "ms"), over("s1", "FLOPs")]
        lines.append(f"| {' | '.join(cells)} | {', '.join(shares)} | {', '.join(sizes)} |")
    return lines


def printed(rows: list[Row]) -> str:
    """Failed rows first, then what was skipped, then the rest by case, as far as there is room."""
    failed = [row for row in rows if row["verdict"] == "FAIL"]
    skipped = [row for row in rows if row["verdict"] == "skipped"]
    lines = [f"{len(rows)} rows, {len(failed)} failed, {len(skipped)} skipped"]
    for row in [*failed, *skipped]:
        bound = f" ({row['bound']})" if row["bound"] else ""
        lines.append(
            f"{row['verdict']}: {row['part']}: {row['case']}: {row['figure']}: "
            f"{_short(row['value'], 260)}{bound}"
        )
    lines += speed_table(rows)
    rest = [row for row in rows if row["verdict"] in ("ok", "info") and not _tabled(row)]
    for (part, case), group in groupby(rest, key=lambda row: (row["part"], row["case"])):
        words = []
        for row in group:
            mark = f" {row['bound']}" if row["bound"] else ""
            missed = " (not met)" if row["bound"] and row["verdict"] == "info" else ""
            words.append(f"{row['figure']} {_short(row['value'], 160)}{mark}{missed}")
        lines.append(f"{part}: {case}: " + "; ".join(words))
    text = "\n".join(lines)
    if len(text) > _SHOWN:
        cut = text[:_SHOWN].rpartition("\n")[0]
        text = cut + "\n… the rest is in table.md"
    return text


def _tabled(row: Row) -> bool:
    """Return whether the row is part of the table of speed."""
    return row["part"] == "speed" and (
        row["case"] == "ratios" or row["figure"].rpartition(": ")[2] in _SPEED
    )
