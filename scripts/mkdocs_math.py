"""A hook of mkdocs: formulas as MathML, so that the site needs neither JavaScript nor a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</\1>', re.S
)
"""What pymdownx.arithmatex makes of a formula: within a line, or displayed."""


def on_page_content(content: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas converted."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["open"] == "[" else "inline"
    return convert(html.unescape(match["tex"]).strip(), display=display)
