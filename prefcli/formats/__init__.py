"""LIGHT: the row formats, most specific first. A new format is a class and a line in `FORMATS`."""

from prefcli.formats.base import Format, Raw, Row, RowError
from prefcli.formats.demonstrations import Conversations, Messages, PromptCompletion, Text
from prefcli.formats.instructions import (
    InstructionLabelled,
    InstructionOutput,
    InstructionPairs,
)
from prefcli.formats.labelled import Labelled, LabelledConversations, LabelledMessages
from prefcli.formats.pairs import ChatPairs, HhPairs, Pairs, ShareGptPairs

FORMATS: tuple[Format, ...] = (
    Pairs(),
    ShareGptPairs(),
    InstructionPairs(),
    ChatPairs(),
    HhPairs(),
    Labelled(),
    InstructionLabelled(),
    LabelledMessages(),
    LabelledConversations(),
    Messages(),
    Conversations(),
    PromptCompletion(),
    InstructionOutput(),
    Text(),
)


def detect(row: Raw) -> Format | None:
    """Return the format of a source, given its first row; None if no format fits."""
    return next((f for f in FORMATS if f.claims(row)), None)


__all__ = ["FORMATS", "Format", "Raw", "Row", "RowError", "detect"]
