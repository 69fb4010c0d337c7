"""Prompts that a policy answers: a column of them, or those of rows of any other format."""

from __future__ import annotations

from typing import Any, ClassVar

from prefcli.formats.base import Format, Raw, Row, RowError, has
from prefcli.formats.chat import Message, check_prompt, split_last_turn, to_messages, to_prompt
from prefcli.methods.base import RowKind


class Prompts(Format):
    """A prompt without a completion, as text or messages."""

    name: ClassVar[str] = "prompts"
    kind: ClassVar[RowKind] = "prompt"
    reads: ClassVar[tuple[str, ...]] = ("prompt",)

    def claims(self, row: Raw) -> bool:
        return has(row, *self.reads)

    def convert(self, row: Raw) -> Row:
        return {"prompt": to_prompt(row["prompt"])}


PROMPTS = Prompts()


def prompt_of(raw: Raw, row_format: Format | None) -> str | list[Message]:
    """Return the prompt of a row. Raises RowError if it has none.

    row_format: that of its source; None if no format fits. A conversation that ends with a user's
    turn is a prompt as it is.
    """
    turns: Any = to_messages(raw["messages"], "messages") if raw.get("messages") else []
    if turns and turns[-1]["role"] != "assistant":
        return check_prompt(turns)
    if row_format is not None and row_format.name != "text":
        row = row_format.convert(raw)
        prompt: str | list[Message] = (
            row["prompt"] if "prompt" in row else split_last_turn(row["messages"], "")[0]
        )
        return prompt
    if PROMPTS.claims(raw):
        return to_prompt(raw["prompt"])
    raise RowError(
        f"columns {', '.join(raw)}",
        "a prompt column, pairs, or a prompt and its completion",
        hint="rename the column of the prompts to prompt, e.g. with columns: {prompt: NAME}",
    )
