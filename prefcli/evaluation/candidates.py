"""Responses to score, as they are in a row of data: one, several to a prompt, or a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from prefcli.data.convert import Place
from prefcli.data.readers import ROWS_TRIED
from prefcli.data.sources import RawRows
from prefcli.data.tokenization import tokenize_batch
from prefcli.errors import DataError
from prefcli.evaluation.logprobs import Row as TokenRow
from prefcli.formats import RowError, detect
from prefcli.formats.base import Raw, describe
from prefcli.formats.chat import complete, is_messages, split_last_turn, to_prompt
from prefcli.formats.chat_columns import add_chat_columns, template_columns
from prefcli.text import last_line

Layout = Literal["single", "list", "pair"]
"""single: one response per row. list: `responses`. pair: `chosen` and `rejected`."""

_EXPECTED = "prompt and responses (a list); prompt and response; or pairs or messages"
_LIST, _ONE = "responses", "response"


@dataclass(frozen=True)
class Candidates:
    """The responses of a row to its prompt, and the columns that the chat template reads."""

    prompt: Any
    responses: list[Any]
    template: Mapping[str, Any]

    def token_rows(self, tokenizer: PreTrainedTokenizerBase, place: str) -> list[TokenRow]:
        """Return (prompt ids, response ids) of each response. Raises DataError.

        place: the file and number of the row.
        """
        count = len(self.responses)
        if not count:
            return []
        columns = {"prompt": [self.prompt] * count, "completion": self.responses}
        columns |= {name: [value] * count for name, value in self.template.items()}
        try:
            rows = tokenize_batch(columns, tokenizer)
        # A chat template is the user's program and may raise any exception.
        except Exception as error:
            if isinstance(self.prompt, str):
                raise
            raise DataError(
                f"the chat template fails on this row: {last_line(error)}",
                code="DAT017",
                place=place,
                hint="change the row, or the template in model.chat_template",
            ) from None
        return [(row["prompt_ids"], row["completion_ids"]) for row in rows]


class CandidateReader:
    """Reads the rows of one source, all in the layout of its first valid row."""

    def __init__(self, rows: RawRows, place: Place) -> None:
        """Find the layout. Raises DataError if there is none."""
        self._rows, self._place = rows, place
        self.layout = self._find_layout()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, list[TokenRow]]:
        """Return the prompt of a row and its responses as token ids. Raises DataError."""
        file, number = self._rows.place(index)
        place = f"{file}: row {number}"
        try:
            candidates = self._candidates(self._rows.row(index))
        except RowError as error:
            raise DataError(str(error), code="DAT010", place=place, hint=error.hint) from None
        return candidates.prompt, candidates.token_rows(tokenizer, place)

    def _find_layout(self) -> Layout:
        first_error: RowError | None = None
        for index in range(min(len(self._rows), ROWS_TRIED)):
            try:
                row, _ = self._place.prepare(self._rows.row(index))
            except RowError as error:
                first_error = first_error or error
                continue
            if "prompt" in row and isinstance(row.get(_LIST), list):
                return "list"
            row_format = detect(_with_completion(row))
            if row_format is not None and row_format.name != "text":
                return "pair" if row_format.kind == "pair" else "single"
        if first_error is not None:
            file, number = self._rows.place(0)
            raise DataError(
                str(first_error),
                code="DAT010",
                place=f"{file}: row {number}",
                hint=first_error.hint,
            )
        raise DataError(
            f"found columns {', '.join(self._rows.column_names) or 'none'}; expected {_EXPECTED}",
            code="DAT011",
            place=self._place.file,
            hint="rename the columns in the file",
        )

    def _candidates(self, raw: Raw) -> Candidates:
        """Convert a row. Raises RowError."""
        raw, _ = self._place.prepare(raw)
        if self.layout == "list":
            row = _list_row(raw)
        else:
            raw = _with_completion(raw)
            row_format = detect(raw)
            if row_format is None or (row_format.kind == "pair") != (self.layout == "pair"):
                expected = "a pair" if self.layout == "pair" else "a prompt and one response"
                raise RowError(f"columns {', '.join(raw)}", f"{expected}, as in the first row")
            row = row_format.convert(raw)
            if "messages" in row:
                prompt, answer = split_last_turn(row.pop("messages"), "messages")
                row |= {"prompt": prompt, "completion": answer}
            sides = ("chosen", "rejected") if self.layout == "pair" else ("completion",)
            row = {**row, _LIST: [row[side] for side in sides]}
        row, _ = add_chat_columns(raw, row, tools=True)
        template = template_columns(row)
        return Candidates(row["prompt"], row[_LIST], template)


def _list_row(raw: Raw) -> dict[str, Any]:
    values = raw.get(_LIST)
    if not isinstance(values, list):
        raise RowError(f"{describe(values)} in {_LIST!r}", "a list of responses")
    prompt = to_prompt(raw.get("prompt"))
    if isinstance(prompt, str) and any(map(is_messages, values)):
        prompt = [{"role": "user", "content": prompt}]
    responses = [complete(prompt, value, f"{_LIST}[{i}]") for i, value in enumerate(values)]
    return {"prompt": prompt, _LIST: responses}


def _with_completion(raw: Raw) -> Raw:
    """Name the column `response` as a completion if there is none."""
    if _ONE not in raw or "prompt" not in raw or raw.get("completion") is not None:
        return raw
    if raw.get("chosen") is not None:
        return raw
    return {**raw, "completion": raw[_ONE]}
