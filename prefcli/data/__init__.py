"""Rows: read from sources, converted to one canonical shape, tokenised, and audited."""

from prefcli.data.findings import Finding, Tally, judge
from prefcli.data.measures import Limits, RowCheck
from prefcli.data.split import Split, glance, load_split
from prefcli.data.tokens import tokenise

__all__ = [
    "Finding",
    "Limits",
    "RowCheck",
    "Split",
    "Tally",
    "glance",
    "judge",
    "load_split",
    "tokenise",
]
