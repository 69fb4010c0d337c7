"""The prompts of rows of any format, ready to be answered; every dropped row is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.data.account import InvalidRows
from prefcli.data.convert import Place
from prefcli.data.digests import json_digest
from prefcli.data.findings import REPEATED, Tally
from prefcli.data.row_sampling import draw_rows
from prefcli.data.sources import read
from prefcli.data.tokenization import Ids, prompt_alone
from prefcli.errors import DataError, RecipeError
from prefcli.evaluation.generate import Prompt
from prefcli.evaluation.on_policy.pairing import prompt_key
from prefcli.formats import RowError, detect
from prefcli.formats.base import Raw
from prefcli.formats.chat_columns import add_chat_columns, template_columns
from prefcli.formats.prompts import prompt_of
from prefcli.progress_bar import counted
from prefcli.recipe.sections import Source
from prefcli.text import last_line

EMPTY = "the prompt is empty"
FILLS_LENGTH = "the prompt alone fills data.max_length"
FILLS_CONTEXT = "the prompt leaves no room for pairs.max_new_tokens in the model's context"


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the columns that its chat template is called with."""

    place: str
    prompt: Prompt
    template: Mapping[str, Any]
    ids: Ids
    """As the model gets them for generation."""
    key: int
    """Equal for equal prompts, whatever file they are from."""

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row with this prompt."""
        return {"prompt": self.prompt, **self.template}


@dataclass
class Prompts:
    """The prompts that are answered, and the rows that are dropped."""

    rows: list[PromptRow] = field(default_factory=list)
    dropped: dict[str, Tally] = field(default_factory=dict)
    """Rows by the reason to drop them."""

    @property
    def digest(self) -> str:
        """Digest the prompts in their order."""
        return json_digest([(row.key, row.ids) for row in self.rows])


@dataclass(frozen=True)
class Room:
    """The tokens that a prompt may have."""

    max_length: int
    """Tokens of prompt and completion in training."""
    context: int | None
    """Those of the model."""
    max_new_tokens: int

    def reason_to_drop(self, tokens: int) -> str | None:
        """Return why a prompt is too long, if it is."""
        if tokens >= self.max_length:
            return FILLS_LENGTH
        if self.context is not None and tokens + self.max_new_tokens > self.context:
            return FILLS_CONTEXT
        return None


def read_prompts(
    sources: Sequence[Source],
    where: str,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    room: Room,
) -> Prompts:
    """Read distinct prompts that leave room for a completion. Raises RecipeError and DataError.

    where: dotted path of the sources.
    """
    prompts = Prompts()
    keys: set[int] = set()
    for i, source in enumerate(sources):
        place = Place.of(sources, i, where)
        raw = read(source, place.where)
        indices = draw_rows(source, len(raw), seed)
        invalid = InvalidRows()
        for index in counted(indices, f"{place.where}: {place.file}"):
            row_place = "{}: row {}".format(*raw.place(index))
            try:
                columns = _prompt_columns(place.prepare(raw.row(index))[0])
            except RowError as error:
                if error.drop is None:
                    invalid.add(error, row_place)
                else:
                    _drop(prompts, error.drop, row_place)
                continue
            row = _row(columns, row_place, tokenizer)
            reason = EMPTY if not row.ids else room.reason_to_drop(len(row.ids))
            if row.key in keys:
                reason = REPEATED
            keys.add(row.key)
            if reason is None:
                prompts.rows.append(row)
            else:
                _drop(prompts, reason, row_place)
        if invalid.count:
            raise invalid.error(len(indices), place.file)
    if not prompts.rows:
        reasons = ", ".join(f"{reason} ({t.count})" for reason, t in prompts.dropped.items())
        raise DataError(
            f"all prompts were dropped: {reasons}",
            code="DAT015",
            place=", ".join(dict.fromkeys(source.path for source in sources)),
            hint="lower pairs.max_new_tokens, or name other rows in pairs.prompts",
        )
    return prompts


def _drop(prompts: Prompts, reason: str, place: str) -> None:
    prompts.dropped.setdefault(reason, Tally()).add(lambda: place)


def _prompt_columns(raw: Raw) -> dict[str, Any]:
    """Return the prompt of a row, and its columns for the chat template. Raises RowError."""
    prompt = prompt_of(raw, detect(raw))
    row, _ = add_chat_columns(raw, {"prompt": prompt}, tools=True)
    return row


def _row(columns: dict[str, Any], place: str, tokenizer: PreTrainedTokenizerBase) -> PromptRow:
    """Tokenize a prompt. Raises DataError, and RecipeError for messages without a template."""
    prompt = columns["prompt"]
    if isinstance(prompt, list) and not tokenizer.chat_template:
        raise RecipeError(
            "the prompt is messages, but the tokenizer has no chat template",
            code="MDL016",
            place=place,
            hint="name a .jinja file in model.chat_template, or a template such as chatml",
        )
    try:
        ids = prompt_alone(columns, tokenizer) if prompt else []
    # A chat template is the user's program and may raise any exception.
    except Exception as error:
        if isinstance(prompt, str):
            raise
        raise DataError(
            f"the chat template fails on this prompt: {last_line(error)}",
            code="DAT017",
            place=place,
            hint="change the prompt, or the template in model.chat_template",
        ) from None
    template = template_columns(columns)
    return PromptRow(place, prompt, template, ids, prompt_key(columns))


def describe(source: Source) -> str:
    """Return a source as text: its path, and what else of it is set."""
    return json.dumps(source.model_dump(exclude_defaults=True), ensure_ascii=False)
