"""Rendering of pages: self-contained, escaped, and safe from the text that they show."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.metrics import metric
from prefcli.report.panels import MAX_POINTS
from prefcli.report.run_data import format_value


def visible(text: object) -> str:
    r"""Return text with control characters and text-direction marks escaped: \x1b, \u202e.

    Lone surrogates, which a file cannot hold, are escaped too.
    """
    return "".join(c if c in "\n\t" or c == " " or _is_shown(c) else _escape(c) for c in str(text))


def _is_shown(character: str) -> bool:
    # Cc is control, Cs surrogates, Cf format; emoji and many scripts need the Cf joiners.
    return character in "\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


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
