"""Rows: read from sources, converted to one canonical shape, tokenised, and counted."""

from prefcli.data.convert import Dropped
from prefcli.data.split import Limits, Split, load_split
from prefcli.data.tokens import tokenise

__all__ = ["Dropped", "Limits", "Split", "load_split", "tokenise"]
