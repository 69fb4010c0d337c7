"""The shelf of row shapes, most telling first. A new one is a file here and a line here."""

from prefcli.formats.base import Format, Raw, Row, RowError
from prefcli.formats.demonstrations import Messages, PromptCompletion, Text
from prefcli.formats.labelled import Labelled
from prefcli.formats.pairs import ChatPairs, HhPairs, Pairs, ShareGptPairs

FORMATS: tuple[Format, ...] = (
    Pairs(),
    ShareGptPairs(),
    ChatPairs(),
    HhPairs(),
    Labelled(),
    Messages(),
    PromptCompletion(),
    Text(),
)


def detect(row: Raw) -> Format | None:
    """The shape of a source, told by its first row; None where no shape fits."""
    return next((f for f in FORMATS if f.claims(row)), None)


__all__ = ["FORMATS", "Format", "Raw", "Row", "RowError", "detect"]
