"""Which tokens of a row are trained on: assistant turns alone, and turns that are marked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from prefcli.data.tokenization import assistant_masks, chats_of, tokenize_batch
from prefcli.errors import Problem, RecipeError
from prefcli.formats.training_marks import MASKED_TURNS
from prefcli.methods.trainers.base import IGNORED


def loss_masks(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    trains_prompt: bool,
) -> list[list[int]] | None:
    """Return masks over prompt and completion of the trained tokens; None for whole completions.

    Raises RecipeError if the tokens of a masked turn cannot be found. rows: by column. tokenizer:
    with `assistant_only`, one whose chat template marks assistant turns.
    """
    marks = rows.get(MASKED_TURNS)
    if marks is None:
        return assistant_masks(rows, tokenizer) if assistant_only else None
    marked = with_generation_markers(tokenizer, "model.chat_template")
    batch = zip(
        chats_of(rows) or [],
        tokenize_batch(rows, tokenizer),
        assistant_masks(rows, marked) or [],
        marks,
        strict=True,
    )
    masks = []
    for chat, ids, assistant, masked in batch:
        prompt = len(ids["prompt_ids"])
        mask = [1] * (prompt + len(ids["completion_ids"]))
        if len(assistant) != len(mask):
            raise _not_found()
        if assistant_only:
            mask = list(assistant)
        if not trains_prompt:
            mask[:prompt] = [0] * prompt
        for start, end in _spans_of(masked or [], chat, assistant):
            mask[start:end] = [0] * (end - start)
        masks.append(mask)
    return masks


def add_labels(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    trains_prompt: bool,
) -> dict[str, list[list[int]]]:
    """Return the labels of rows with masked turns, which trl takes as they are."""
    masks = loss_masks(rows, tokenizer, assistant_only=assistant_only, trains_prompt=trains_prompt)
    assert masks is not None
    labels = []
    for ids, mask in zip(tokenize_batch(rows, tokenizer), masks, strict=True):
        text = ids["prompt_ids"] + ids["completion_ids"]
        labels.append([i if on else IGNORED for i, on in zip(text, mask, strict=True)])
    return {"labels": labels}


def with_generation_markers(
    tokenizer: PreTrainedTokenizerBase, path: str
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a chat template that marks assistant turns, as trl will use it.

    Raises RecipeError at `path`.
    """
    if tokenizer.chat_template is None or has_generation_markers(tokenizer.chat_template):
        return tokenizer
    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        raise RecipeError(
            Problem(
                "the chat template does not mark assistant turns",
                path=path,
                hint="set model.chat_template to a template with {% generation %} and "
                "{% endgeneration %} around them",
                code="MDL017",
            )
        ) from None
    marked = copy.copy(tokenizer)
    marked.chat_template = template
    return marked


def _spans_of(
    masked: Sequence[int], chat: Sequence[Mapping[str, Any]], assistant: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the first token and the end of each masked turn: what the template marks as it."""
    turns = [at for at, message in enumerate(chat) if message["role"] == "assistant"]
    spans, start = [], 0
    for on, run in groupby(assistant):
        end = start + sum(1 for _ in run)
        if on:
            spans.append((start, end))
        start = end
    if masked and len(spans) != len(turns):
        raise _not_found()
    return [spans[turns.index(at)] for at in masked]


def _not_found() -> RecipeError:
    return RecipeError(
        Problem(
            "turns are marked as not trained, but the chat template does not mark each assistant "
            "turn",
            path="model.chat_template",
            hint="put {% generation %} and {% endgeneration %} around each assistant turn of the "
            "template, or remove the marks",
            code="MDL017",
        )
    )
