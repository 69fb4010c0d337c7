"""Rendering of pages: self-contained, escaped, and safe from the text that they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefcli.console import visible
from prefcli.metrics import metric
from prefcli.report.panels import MAX_POINTS
from prefcli.report.run_data import format_value
from prefcli.secrets import redact


def metric_title(key: str) -> str:
    """Return a metric's title, by its key with or without `eval_`."""
    return metric(key).title


def clipped(text: str, limit: int) -> Markup:
    """Return at most so many characters of a text, with a mark where it was cut."""
    text = redact(text.strip())
    if len(text) <= limit:
        return escape(visible(text))
    start = text[:limit]
    words = start.rsplit(None, 1)[0]
    start = words if len(words) > 0.8 * limit else start
    rest = f"{len(text) - len(start):,} more characters"
    return escape(visible(start)) + Markup(' <span class="cut">... {}</span>').format(rest)


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter; `capitalize` lowers the others."""
    return text[:1].upper() + text[1:]


def _shown(value: Any) -> Any:
    """Escape the control characters of a text; markup of macros is as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_PAGES = Environment(
    loader=PackageLoader("prefcli.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["metric_title"] = metric_title
_PAGES.filters["clipped"] = clipped
_PAGES.filters["sentence"] = sentence
_PAGES.globals["format_value"] = format_value
_PAGES.globals["max_points"] = MAX_POINTS


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page made from a template in `templates/`, without the secrets of its texts."""
    return redact(_PAGES.get_template(template).render(**content))
