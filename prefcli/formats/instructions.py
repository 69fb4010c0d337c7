"""Instructions with an optional input, as Alpaca, LLaMA-Factory and axolotl write them.

They become turns of a chat; `system` and `history` are added to every chat.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from prefcli.formats.base import Format, Raw, Row, RowError, describe, has
from prefcli.formats.chat import complete
from prefcli.formats.labelled import to_label
from prefcli.methods.base import RowKind


class Instructions(Format):
    """The base: a user turn of instruction and input, and the answers in other columns."""

    answers: ClassVar[tuple[str, ...]]
    """Columns of answers and labels."""

    def claims(self, row: Raw) -> bool:
        return has(row, "instruction", *self.answers) and not has(row, "prompt")

    def convert(self, row: Raw) -> Row:
        parts = [row["instruction"], row.get("input")]
        for name, part in zip(("instruction", "input"), parts, strict=True):
            if part is not None and not isinstance(part, str):
                raise RowError(f"{describe(part)} in {name!r}", "text")
        prompt = [{"role": "user", "content": "\n".join(part for part in parts if part)}]
        return {"prompt": prompt, **self.answer(row, prompt)}

    @abstractmethod
    def answer(self, row: Raw, prompt: list[dict[str, str]]) -> Row:
        """Return the answers and labels of a row."""


class InstructionOutput(Instructions):
    """An instruction and its output."""

    name: ClassVar[str] = "instruction and output"
    kind: ClassVar[RowKind] = "demonstration"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "input", "output")
    answers: ClassVar[tuple[str, ...]] = ("output",)

    def answer(self, row: Raw, prompt: list[dict[str, str]]) -> Row:
        return {"completion": complete(prompt, row["output"], "output")}


class InstructionPairs(Instructions):
    """An instruction with a chosen and a rejected answer."""

    name: ClassVar[str] = "instruction pairs"
    kind: ClassVar[RowKind] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "input", "chosen", "rejected")
    answers: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def answer(self, row: Raw, prompt: list[dict[str, str]]) -> Row:
        return {side: complete(prompt, row[side], side) for side in self.answers}


class InstructionLabelled(Instructions):
    """An instruction, its output and LLaMA-Factory's label `kto_tag`."""

    name: ClassVar[str] = "instruction with kto_tag"
    kind: ClassVar[RowKind] = "labelled"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "input", "output", "kto_tag")
    answers: ClassVar[tuple[str, ...]] = ("output", "kto_tag")
    label_column: ClassVar[str | None] = "kto_tag"

    def answer(self, row: Raw, prompt: list[dict[str, str]]) -> Row:
        label = to_label(row["kto_tag"], "kto_tag")
        return {"completion": complete(prompt, row["output"], "output"), "label": label}
