"""Single responses labelled good or bad."""

from __future__ import annotations

from typing import Any, ClassVar

from prefcli.formats.base import BAD_LABEL, Format, Raw, Row, RowError, describe, has
from prefcli.formats.chat import complete, is_messages, split_last_turn, to_messages, to_prompt
from prefcli.methods.base import RowKind

_WORDS = {"true": (True, "text true/false"), "false": (False, "text true/false")}
_DIGITS = {"1": (True, "text 1/0"), "0": (False, "text 1/0")}
_TEXTS = _WORDS | _DIGITS


def label_spelling(value: Any) -> str | None:
    """Return how a label is spelled; None if it is not a label."""
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "1/0" if value in (0, 1) else None
    return _TEXTS[key][1] if isinstance(value, str) and (key := _key(value)) in _TEXTS else None


def to_label(value: Any, column: str) -> bool:
    """Convert a label in one of the spellings. Raises RowError."""
    if label_spelling(value) is None:
        raise RowError(
            f"{describe(value)} in {column!r}",
            "true or false, or 1 or 0 throughout the column",
            drop=BAD_LABEL,
            hint=f"write true for rows to learn from and false for the others in {column!r}",
        )
    return _TEXTS[_key(value)][0] if isinstance(value, str) else bool(value)


def _key(text: str) -> str:
    return text.strip().lower()


class Labelled(Format):
    """A prompt, its completion and a label."""

    name: ClassVar[str] = "labelled"
    kind: ClassVar[RowKind] = "labelled"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "completion", "label")
    label_column: ClassVar[str | None] = "label"

    def claims(self, row: Raw) -> bool:
        return has(row, "prompt", "completion", "label")

    def convert(self, row: Raw) -> Row:
        label = to_label(row["label"], "label")
        prompt = to_prompt(row["prompt"])
        if isinstance(prompt, str) and is_messages(row["completion"]):
            prompt = [{"role": "user", "content": prompt}]
        completion = complete(prompt, row["completion"], "completion")
        return {"prompt": prompt, "completion": completion, "label": label}


class LabelledMessages(Format):
    """A conversation in `messages` and a label of its last turn."""

    name: ClassVar[str] = "labelled messages"
    kind: ClassVar[RowKind] = "labelled"
    reads: ClassVar[tuple[str, ...]] = ("messages", "label")
    label_column: ClassVar[str | None] = "label"
    conversation: ClassVar[str] = "messages"

    def claims(self, row: Raw) -> bool:
        # A label of another kind, such as a topic, does not make a row of kto.
        return has(row, self.conversation) and label_spelling(row.get("label")) is not None

    def convert(self, row: Raw) -> Row:
        label = to_label(row["label"], "label")
        column = self.conversation
        prompt, completion = split_last_turn(to_messages(row[column], column), column)
        return {"prompt": prompt, "completion": completion, "label": label}


class LabelledConversations(LabelledMessages):
    """The same in `conversations`, ShareGPT's name."""

    name: ClassVar[str] = "labelled conversations"
    reads: ClassVar[tuple[str, ...]] = ("conversations", "label")
    conversation: ClassVar[str] = "conversations"
