"""Rendering of pages: self-contained, escaped, and safe from the text that they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.console import visible
from prefcli.metrics import metric
from prefcli.report.panels import MAX_POINTS
from prefcli.report.run_data import format_value


def metric_title(key: str) -> str:
    """Return a metric's title, by its key with or without `eval_`."""
    return metric(key).title


_PAGES = Environment(
    loader=PackageLoader("prefcli.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["visible"] = visible
_PAGES.filters["metric_title"] = metric_title
_PAGES.globals["format_value"] = format_value
_PAGES.globals["max_points"] = MAX_POINTS


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page made from a template in `templates/`."""
    return _PAGES.get_template(template).render(**content)
