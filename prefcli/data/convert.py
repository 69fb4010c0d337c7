"""Raw rows -> canonical rows of the kind that a method trains on; dropped rows are counted."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, concatenate_datasets

from prefcli.data.account import Account, InvalidRows
from prefcli.data.canonical_tables import CanonicalTables, unify
from prefcli.data.readers import ROWS_TRIED
from prefcli.data.sources import RawRows
from prefcli.errors import DataError, Problem
from prefcli.formats import FORMATS, Format, RowError, detect
from prefcli.formats.base import BAD_LABEL, MARGIN, Raw, Row, describe
from prefcli.formats.cells import prepare
from prefcli.formats.chat import REASONING_KEYS, split_last_turn
from prefcli.formats.chat_columns import (
    TEMPLATE_COLUMNS,
    add_chat_columns,
    reasoning_key,
    rename_reasoning,
    without_null_content,
)
from prefcli.formats.contents import compare_scores, holds_user_turn, score_columns
from prefcli.formats.labelled import label_spelling
from prefcli.formats.prompts import PROMPTS, prompt_of
from prefcli.formats.training_marks import MASKED_NOTE, MASKED_TURNS, Training, take_marks
from prefcli.formats.unread import cure, unread
from prefcli.methods import RowKind
from prefcli.progress_bar import counted
from prefcli.recipe.sections import Source

COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected", MARGIN, *TEMPLATE_COLUMNS),
    "labelled": ("prompt", "completion", "label", *TEMPLATE_COLUMNS),
    "demonstration": ("messages", "prompt", "completion", "text", *TEMPLATE_COLUMNS, MASKED_TURNS),
    "prompt": ("prompt", *TEMPLATE_COLUMNS),
}
"""Columns a canonical row of each kind may have."""


_TEXT_KEYS = ("content", *REASONING_KEYS)
_CONTEXT = ("prompt", "messages", "text")
"""Columns that the model reads; an answer does not show what it was made from."""


@dataclass(frozen=True)
class Place:
    """A source in messages: its file, and its dotted path in the recipe."""

    file: str
    where: str
    chat: bool = False
    """Texts become turns."""
    prompt_template: str | None = None
    """Writes the prompts of instructions."""

    @classmethod
    def of(cls, sources: Sequence[Source], i: int, where: str) -> Place:
        """Return the place of a source. where: dotted path of the sources."""
        path = where if len(sources) == 1 else f"{where}[{i}]"
        return cls(sources[i].path, path, sources[i].chat, sources[i].prompt_template)

    def prepare(self, row: Raw) -> tuple[Raw, list[str]]:
        """Return the row as the source's options change it, and notes about that."""
        return prepare(row, chat=self.chat, prompt_template=self.prompt_template)


def convert(
    rows: RawRows,
    indices: Sequence[int],
    kind: RowKind,
    place: Place,
    account: Account,
    *,
    last_turn: bool = False,
    tools: bool = True,
    template: str = "",
    training: Training | None = None,
    margins_from: str | None = None,
) -> Dataset:
    """Convert rows to canonical ones, with `_file` and `_row` (their number in the file).

    Pairs stay pairs for labelled rows, so that both sides are kept or dropped together; see
    `pairs_to_labels`. Raises DataError with the causes of invalid rows. Rows that are dropped, and
    what is not read, are counted in `account`.

    last_turn: a conversation becomes a prompt and its last turn, which is the completion.
    tools: the trainer passes tools to the chat template.
    template: the chat template; reasoning gets the key that it reads.
    training: what is trained on of demonstrations; None if complete answers are.
    margins_from: the column of margins.
    """
    row_format, blank = _detect(rows, indices, kind, place)
    reader = _RowReader(
        row_format,
        blank,
        account,
        place,
        tools,
        "none" in template,
        reasoning_key(template),
        score_columns(blank.keys() - row_format.reads)
        if row_format.kind == "pair" and kind != "prompt"
        else [],
        training is None or not training.assistant_only,
        margins_from,
        prompts_only=kind == "prompt",
    )
    invalid, invalid_but_dropped = InvalidRows(), InvalidRows()
    # Every kind yields demonstrations: the chosen side of a pair, or the rows labelled true.
    tables = CanonicalTables(
        rename={"completion": "chosen"}
        if kind == "demonstration" and row_format.kind == "pair"
        else {},
        without={"label"} if kind == "demonstration" else set(),
    )
    for index in counted(indices, f"{place.where}: {place.file}"):
        file, number = rows.place(index)
        row_place = f"{file}: row {number}"
        try:
            row = reader.read(rows.row(index), row_place)
            if last_turn and "messages" in row:
                prompt, answer = split_last_turn(row.pop("messages"), "messages")
                row |= {"prompt": prompt, "completion": answer}
            texts = {name: _texts(value) for name, value in row.items()}
            _check_surrogates(texts)
            reader.check_types(row, row_place)
            row = take_marks(row, training)
        except RowError as error:
            if error.drop is None:
                invalid.add(error, row_place)
            else:
                invalid_but_dropped.add(error, row_place)
                account.drop(error.drop, row_place, error.actual)
            continue
        if reason := _drop_reason(row, texts, kind):
            account.drop(reason, row_place)
        elif not invalid.count:
            if MASKED_TURNS in row:
                account.note(MASKED_NOTE, functools.partial(str, row_place))
            tables.add({**row, "_file": file, "_row": number})
    if invalid.count:
        raise invalid.error(len(indices), place.file)
    if invalid_but_dropped.count == len(indices):
        raise invalid_but_dropped.error(len(indices), place.file)
    return tables.dataset(reader.example)


@dataclass
class _RowReader:
    """Reads the rows of one source, and compares each with the first."""

    row_format: Format
    blank: dict[str, None]
    account: Account
    source: Place
    tools: bool
    tests_null: bool
    reasoning: str | None
    scores: list[tuple[str, str]]
    """Columns that may hold the scores of chosen and rejected."""
    trains_users: bool
    margins_from: str | None
    prompts_only: bool
    """Ignore completions and labels, since the policy writes its own."""
    example: Row = field(default_factory=dict)
    """The first valid row; it decides between text and messages."""
    _example_place: str = ""
    _spelling: str | None = None
    _spelled_first: str = ""

    def read(self, raw: Raw, place: str) -> Row:
        """Convert a row, and count what is not read. Raises RowError."""
        if not self.blank.keys() <= raw.keys():
            raw = {**self.blank, **raw}
        raw, notes = self.source.prepare(raw)
        here = functools.partial(str, place)
        if self.prompts_only:
            row = {"prompt": prompt_of(raw, self.row_format)}
        else:
            row = self.row_format.convert(raw)
        if self.row_format.label_column is not None and not self.prompts_only:
            notes += self._check_spelling(raw[self.row_format.label_column], place)
        if self.margins_from is not None or not _is_plain(raw, self.row_format.reads):
            row = self._read_more(raw, row, notes, here)
        for note in notes:
            self.account.note(note, here)
        if self.trains_users and holds_user_turn(row):
            self.account.count("user_turns", "an answer", here)
        return row

    def _read_more(self, raw: Raw, row: Row, notes: list[str], here: Callable[[], str]) -> Row:
        """Add what other columns and keys of messages hold, and count what is not read."""
        row, read = add_chat_columns(raw, row, tools=self.tools)
        if not self.tests_null:
            row = without_null_content(row)
        if self.reasoning is not None:
            row, renamed = rename_reasoning(row, self.reasoning)
            notes += renamed
        read = read.union(self.row_format.reads)
        if self.margins_from is not None:
            row = {**row, MARGIN: _margin(raw, self.margins_from)}
            read |= {self.margins_from}
        if self.scores:
            read |= self._compare_scores(raw, here)
        is_chat = isinstance(row.get("messages", row.get("prompt")), list)
        if values := _missing(unread(raw, read), row, chat=is_chat):
            self.account.leave_unread(values, here, chat=is_chat)
        return row

    def check_types(self, row: Row, place: str) -> None:
        """Compare text and messages with the first row. Raises RowError."""
        if not self.example:
            self.example, self._example_place = row, place
        for name, value in row.items():
            if name in (*TEMPLATE_COLUMNS, MARGIN):
                continue
            if isinstance(value, str) != isinstance(self.example[name], str):
                raise RowError(
                    f"{_type_name(value)} in {name!r}",
                    f"{_type_name(self.example[name])}, as in {self._example_place}",
                )

    def _compare_scores(self, raw: Raw, here: Callable[[], str]) -> frozenset[str]:
        """Count scores that contradict the preference; return the columns of scores."""
        read: set[str] = set()
        for columns in self.scores:
            for finding, detail in compare_scores(raw, [columns]):
                read.update(columns)
                if finding:
                    self.account.count(finding, detail, here)
        return frozenset(read)

    def _check_spelling(self, label: Any, place: str) -> list[str]:
        """Check that all labels are spelled like the first; return a note about the spelling."""
        spelling = label_spelling(label)
        if self._spelling is None:
            self._spelling, self._spelled_first = spelling, place
        if spelling != self._spelling:
            raise RowError(
                f"{describe(label)} in {self.row_format.label_column!r}",
                f"{self._spelling}, as in {self._spelled_first}",
                drop=BAD_LABEL,
            )
        return [] if isinstance(label, bool) else [f"labels {spelling} were read as true/false"]


def _margin(raw: Raw, column: str) -> float:
    """Return the margin of a pair. Raises RowError unless it is a finite number."""
    value = raw.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{describe(value)} in {column!r} (reward.margin_column)", "a number")
    return float(value)


def pairs_to_labels(rows: Dataset) -> Dataset:
    """Turn each pair into a desirable and an undesirable row."""

    def side(column: str, label: bool) -> Dataset:
        labelled = rows.remove_columns("rejected" if column == "chosen" else "chosen")
        labelled = labelled.rename_column(column, "completion")
        return labelled.add_column("label", [label] * len(labelled))

    return concatenate_datasets(unify([side("chosen", True), side("rejected", False)]))


def _detect(
    rows: RawRows, indices: Sequence[int], kind: RowKind, place: Place
) -> tuple[Format, dict[str, None]]:
    """Return the format of the first row that has one, and a row of its columns without values.

    Earlier rows may be the invalid ones.
    """
    first_error = None
    row: Raw = {}
    for index in indices[:ROWS_TRIED]:
        try:
            row, _ = place.prepare(rows.row(index))
            row_format = detect(row)
        except RowError as error:
            first_error = first_error or Problem(
                str(error),
                place="{}: row {}".format(*rows.place(index)),
                hint=error.hint,
                code="DAT010",
            )
            continue
        if row_format is None and kind == "prompt" and PROMPTS.claims(row):
            row_format = PROMPTS
        if row_format is not None and _is_usable(row_format.kind, kind):
            return row_format, dict.fromkeys(row)
        if row_format is not None:
            raise _wrong_kind(row_format, kind, place)
    if first_error is not None:
        raise DataError(first_error)
    raise _no_format(kind, rows, place, row)


def kind_of(rows: RawRows, place: Place) -> RowKind:
    """Return the kind of rows that a source has. Raises DataError if no format fits."""
    row_format, _ = _detect(rows, range(len(rows)), "demonstration", place)
    return row_format.kind


def _is_usable(source_kind: RowKind, kind: RowKind) -> bool:
    return (
        source_kind == kind
        or kind in ("demonstration", "prompt")
        or (source_kind, kind) == ("pair", "labelled")
    )


def _is_plain(raw: Raw, reads: tuple[str, ...]) -> bool:
    """Check for a row with no column but these, and messages of role and content alone.

    Most rows are so, and need no search for anything else.
    """
    for name, value in raw.items():
        if name not in reads:
            return False
        if isinstance(value, list):
            for message in value:
                if (
                    not isinstance(message, dict)
                    or len(message) != 2
                    or not isinstance(message.get("content", message.get("value")), str)
                ):
                    return False
        elif not isinstance(value, str | bool):
            return False
    return True


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []
    texts = []
    for message in value:
        if len(message) == 2:
            texts.append(message["content"] or "")
        else:
            texts += [text for text in map(message.get, _TEXT_KEYS) if text]
    return texts


def _missing(values: dict[str, Any], row: Row, *, chat: bool) -> dict[str, Any]:
    """Return the unread values without the texts that the prompt or the messages contain."""
    texts = [text for name in _CONTEXT if name in row for text in _texts(row[name])]
    return {
        name: value
        for name, value in values.items()
        if not isinstance(value, str)
        or cure(name, chat=chat) is None
        or not any(value.strip() in text for text in texts)
    }


def _check_surrogates(texts: Mapping[str, list[str]]) -> None:
    """Refuse half of an emoji, which JSON allows and no tokenizer accepts. texts: by column."""
    for name, values in texts.items():
        for text in values:
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    surrogate = text[error.start : error.start + 1]
                    raise RowError(
                        f"an invalid surrogate {surrogate!a} in {name!r}",
                        "complete characters; the text was cut inside an emoji",
                    ) from None


def _type_name(value: Any) -> str:
    return "text" if isinstance(value, str) else "messages"


def _has_content(value: Any, texts: list[str]) -> bool:
    """Check for a text that is not blank, or a call."""
    for text in texts:
        if text.strip():
            return True
    return isinstance(value, list) and any("tool_calls" in message for message in value)


def _drop_reason(row: Row, texts: Mapping[str, list[str]], kind: RowKind) -> str | None:
    for name in ("prompt", "chosen", "rejected", "completion", "text"):
        if name == "rejected" and kind == "demonstration":
            continue
        if name in row and not _has_content(row[name], texts[name]):
            return f"empty {name}"
    if "messages" in row:
        turns = [m for m in row["messages"] if m["role"] == "assistant"]
        if not all(_has_content([turn], _texts([turn])) for turn in turns):
            return "empty assistant message"
    if kind != "demonstration" and "chosen" in row and row["chosen"] == row["rejected"]:
        return "chosen and rejected are identical"
    if kind == "demonstration" and row.get("label") is False:
        return "label is false (sft uses only rows labelled true)"
    return None


def _wrong_kind(row_format: Format, kind: RowKind, place: Place) -> DataError:
    return DataError(
        f"found {row_format.columns}, which is {row_format.name}; expected {_columns_for(kind)}",
        code="DAT012",
        place=place.file,
        hint={
            "labelled": "train on labelled rows with `prefcli kto`",
            "demonstration": "train on demonstrations with `prefcli sft`",
            "pair": "train on pairs with `prefcli dpo`",
            "prompt": "train on prompts with `prefcli rloo`",
        }[row_format.kind],
    )


def _no_format(kind: RowKind, rows: RawRows, place: Place, row: Raw) -> DataError:
    """Return the error of a source whose rows have no known format. row: one of them."""
    names = set(rows.column_names)
    hint = "rename the columns in the file"
    if place.where.startswith("data."):  # a key of the recipe, and not an argument
        hint = f"name them with {place.where}.columns: {_meant_columns(kind, rows.column_names)}"
    if len(names) == 1 and isinstance(row.get(rows.column_names[0]), list):
        (key,) = names
        hint = f"the rows are under the key {key!r}: `jq -c '.{key}[]' FILE > NEW.jsonl`"
    if {"chosen", "rejected"} <= names:
        others = names - {"chosen", "rejected"}
        name = others.pop() if len(others) == 1 else "..."
        hint = (
            "the prompt is not derived from the common start of chosen and rejected; name its "
            f"column with {place.where}.columns: {{prompt: {name}}}"
        )
    if len(names) == 1 and (mark := re.search(r"[;\t|]", rows.column_names[0])):
        hint = f"write the CSV file with commas; its header seems to be divided by {mark[0]!r}"
    columns = ", ".join(rows.column_names) or "none"
    return DataError(
        f"found columns {columns}; expected {_columns_for(kind)}",
        code="DAT011",
        place=place.file,
        hint=hint,
    )


_SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "context", "problem"),
    "chosen": ("good", "better", "response_j", "preferred", "accepted", "winner", "positive"),
    "rejected": ("bad", "worse", "response_k", "dispreferred", "refused", "loser", "negative"),
    "completion": ("response", "answer", "output", "generation", "text"),
    "label": ("good", "rating", "score", "is_good", "thumbs_up", "feedback"),
}
_COLUMNS: Mapping[RowKind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "demonstration": ("prompt", "completion"),
    "prompt": ("prompt",),
}


def _meant_columns(kind: RowKind, names: Sequence[str]) -> str:
    """The `columns` section that these columns probably need; ... where none fits."""
    plain = {name.lower(): name for name in names}
    renamed = {
        column: next((plain[word] for word in _SYNONYMS[column] if word in plain), "...")
        for column in _COLUMNS[kind]
        if column not in names
    }
    return f"{{{', '.join(f'{column}: {name}' for column, name in renamed.items())}}}"


def _columns_for(kind: RowKind) -> str:
    formats = (PROMPTS, *FORMATS) if kind == "prompt" else FORMATS
    return "; or ".join(f.columns for f in formats if _is_usable(f.kind, kind))
