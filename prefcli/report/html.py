"""How a page is made: escaped, self-contained, and safe from the text it shows."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefcli.report.metrics import figure, in_words
from prefcli.report.panels import MOST, Panel
from prefcli.report.plots import Mark, curves


def visible(text: object) -> str:
    """What would not be seen, or would turn what is seen around, is spelled out: \\x1b, \\u202e.

    Also lone surrogates, which no file can hold.
    """
    return "".join(c if c in "\n\t" or c == " " or _shown(c) else _spelled(c) for c in str(text))


def _shown(character: str) -> bool:
    # Cc control, Cf format (but for joiners, which many scripts and emoji need), Cs surrogates.
    return character in "\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_PAGES = Environment(
    loader=PackageLoader("prefcli.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["visible"] = visible
_PAGES.filters["figure"] = figure
_PAGES.filters["words"] = in_words
_PAGES.globals["most_points"] = MOST


def page(template: str, content: Mapping[str, Any]) -> str:
    return _PAGES.get_template(template).render(**content)


def drawn(
    panels: Sequence[Panel], marks: Sequence[Mark], ends: tuple[float, float]
) -> list[tuple[Panel, Markup]]:
    return [(panel, Markup(curves(panel, marks, ends))) for panel in panels]


def ends_of(panels: Sequence[Panel]) -> tuple[float, float]:
    """The first and last step of all of them."""
    steps = [
        step
        for panel in panels
        for line in panel.lines
        for step, _ in (*line.train, *line.held_out)
    ]
    return min(steps, default=0.0), max(steps, default=1.0)
