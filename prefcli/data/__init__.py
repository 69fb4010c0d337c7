"""Rows: read from sources, converted to canonical rows, tokenized, audited and cached."""

from prefcli.data.findings import Finding, Tally, judge
from prefcli.data.row_stats import Limits, RowCheck
from prefcli.data.split import Split, check_shape, load_split
from prefcli.data.tokenization import tokenize

__all__ = [
    "Finding",
    "Limits",
    "RowCheck",
    "Split",
    "Tally",
    "check_shape",
    "judge",
    "load_split",
    "tokenize",
]
