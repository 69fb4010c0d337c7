"""The data audit as one page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from prefcli.report.html import page
from prefcli.report.plots import histogram
from prefcli.report.text_histogram import bin_labels


def data_page(document: Mapping[str, Any]) -> str:
    """HTML of what `prefcli data --json` prints."""
    pictures = {name: _pictures(split["lengths"]) for name, split in document["splits"].items()}
    return page("data.html", {**document, "pictures": pictures})


def _pictures(lengths: Mapping[str, Any]) -> dict[str, Markup]:
    shape = lengths["histogram"]
    ends, labels = shape["ends"], list(bin_labels(shape["ends"]))
    cut_after = ends.index(shape["room"]) if shape["room"] in ends else None
    label = f"max_length {lengths['max_length']}"
    return {
        name: Markup(histogram(labels, counts, cut_after=cut_after, cut_label=label))
        for name, counts in shape["rows"].items()
    }
