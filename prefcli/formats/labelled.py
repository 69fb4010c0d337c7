"""Single responses labelled good or bad."""

from __future__ import annotations

from typing import ClassVar

from prefcli.formats.base import BAD_LABEL, Format, Raw, Row, RowError, describe, has
from prefcli.formats.chat import complete, is_messages, to_prompt
from prefcli.methods.base import RowKind


class Labelled(Format):
    """A prompt, its completion and a true/false label."""

    name: ClassVar[str] = "labelled"
    kind: ClassVar[RowKind] = "labelled"
    columns: ClassVar[str] = "prompt, completion, label"
    reads: ClassVar[frozenset[str]] = frozenset({"prompt", "completion", "label"})

    def claims(self, row: Raw) -> bool:
        return has(row, "prompt", "completion", "label")

    def convert(self, row: Raw) -> Row:
        label = row["label"]
        if not isinstance(label, bool):
            raise RowError(f"{describe(label)} in 'label'", "true or false", drop=BAD_LABEL)
        prompt = to_prompt(row["prompt"])
        if isinstance(prompt, str) and is_messages(row["completion"]):
            prompt = [{"role": "user", "content": prompt}]
        return {
            "prompt": prompt,
            "completion": complete(prompt, row["completion"], "completion"),
            "label": label,
        }
