"""Statistics of canonical rows: lengths in tokens, reasons to drop a row, and its faults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from prefcli.data.digests import row_key
from prefcli.data.findings import LONGER, NO_ROOM
from prefcli.data.lengths import Ints
from prefcli.data.rendered_text import Rendering
from prefcli.data.tokenization import (
    sides_of,
    template_kwargs,
    tokenize,
    tokenize_batch,
)
from prefcli.data.turn_masks import loss_masks
from prefcli.errors import DataError
from prefcli.formats.chat_columns import template_columns
from prefcli.methods import RowKind
from prefcli.progress_bar import progress
from prefcli.text import last_line

_BATCH = 1000
_KEYS = ("row_key", "prompt_key", "opposite_key")
"""Names of the keys that `_keys_of` returns."""
_NO_OPPOSITE = row_key(None)
_PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Limits:
    """The limits of a trainer; rows beyond them are dropped and counted."""

    max_length: int
    """Tokens of prompt and completion. The completion is cut; the prompt must leave room for it."""
    prompt_margin: int = 0
    """Tokens that the trainer may add to a prompt."""
    max_merged_tokens: int | None = None
    """Tokens at the end of a text prompt that may merge with the completion."""
    renders_tools: bool = True
    """Tools of a row are passed to the chat template."""
    assistant_only: bool = False
    """Train only on what the chat template marks as the assistant's."""
    trains_prompt: bool = False
    """Train on prompts as well."""
    drops_longer_rows: bool = False
    """Rows with more than max_length tokens are dropped, not cut."""
    sampled_tokens: int = 0
    """Tokens of a completion that is sampled for a row, which is a prompt then."""

    @property
    def margin(self) -> int:
        """Tokens of a trained row besides those of its columns."""
        return self.prompt_margin + self.sampled_tokens

    @property
    def room(self) -> int:
        return self.max_length - self.margin


class RowCheck(Protocol):
    """A search for faults in a tokenized row; a fault's name is a field of `data.checks`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def cures(self) -> Mapping[str, str]:
        """Cures of faults that depend on the template, by fault."""

    def __call__(
        self, ids: Mapping[str, Any], room: int, trained: Sequence[int] | None = None
    ) -> Iterable[str]:
        """Return the faults of a row of `tokenize` that is trained on up to `room` tokens.

        trained: a mask over prompt and completion; None if all of the completion is trained.
        """


@dataclass(frozen=True)
class RowStats:
    """Statistics of a source's rows: arrays with one entry per row."""

    drop: list[str | None]
    """Why the row can't be trained on: a key of DROPS."""
    tokens: Ints
    """Tokens of prompt and completions, after the cut."""
    prompt: Ints
    sides: dict[str, Ints]
    """Tokens of each completion, before the cut."""
    ends: dict[str, Ints]
    """Tokens of the prompt with each completion, before the cut; of the prompt alone without."""
    faults: dict[str, npt.NDArray[np.bool_]]
    unrendered: list[str | None]
    """What of the messages is not in the rendered text, such as `text of tool`."""
    row_key: Ints
    """Equal for equal rows."""
    prompt_key: Ints
    """Equal for equal prompts. The prompt of a conversation is what comes before its last answer;
    of a text, the complete text."""
    opposite_key: Ints
    """The row_key of the row with the opposite preference."""


def compute_row_stats(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    kind: RowKind,
    limits: Limits,
    num_proc: int | None,
    checks: Sequence[RowCheck] = (),
) -> RowStats:
    """Tokenize each row once. Raises DataError if the chat template fails on a row."""
    chat = are_chats(rows)
    pairs = "chosen" in rows.column_names
    sides: tuple[str, ...] = _PAIR if pairs else ("completion",)
    if kind == "prompt":
        sides = ()
    boundary = "template_boundary" if chat else "prompt_boundary"
    faults = (boundary, *(name for check in checks for name in check.names))
    keys = _KEYS
    numbers = ("tokens", "prompt", *sides, *map(_end, sides), *keys)
    features = Features(
        {
            "drop": Value("string"),
            "unrendered": Value("string"),
            **{name: Value("int64") for name in numbers},
            **{name: Value("bool") for name in faults},
        }
    )

    comparison = Rendering(tokenizer)

    def compute_batch(
        batch: dict[str, list[Any]], *, count: Callable[[int], None] | None
    ) -> dict[str, list[Any]]:
        columns = {name: values for name, values in batch.items() if not name.startswith("_")}
        parts = [columns]
        if kind == "labelled" and pairs:
            # trl sees each side alone and may divide prompt and completion at another token.
            rendering = template_columns(columns)
            parts = [
                {"prompt": columns["prompt"], "completion": columns[side], **rendering}
                for side in sides
            ]
        rendered: list[dict[str, list[str]]] = [{} for _ in parts] if chat else []
        tokenized = zip(
            *(
                _tokenize(part, tokenizer, batch, texts)
                for part, texts in zip(parts, rendered or repeat(None), strict=False)
            ),
            strict=True,
        )
        comparisons = _comparisons(parts, rendered, comparison) if chat else repeat((None, False))
        # No masks for text, which has no assistant turns: read_run_datasets refuses it.
        masks = loss_masks(
            columns,
            tokenizer,
            assistant_only=limits.assistant_only,
            trains_prompt=limits.trains_prompt,
        )
        stats = []
        for ids, row, mask, (missing, same_text) in zip(
            tokenized, _rows(columns), masks or repeat(None), comparisons, strict=False
        ):
            row_faults = {boundary} if any(part["merged_tokens"] for part in ids) else set()
            for check in checks:
                row_faults.update(*(check(part, limits.room, mask) for part in ids))
            counts = measure_row(ids, limits, chat=chat, same_text=same_text)
            if mask is not None and not any(mask[: limits.room]):
                # trl drops these silently.
                reason = "within max_length" if any(mask) else "marked by the chat template"
                counts["drop"] = counts["drop"] or f"no assistant token {reason}"
            stats.append(
                {
                    **counts,
                    "unrendered": missing,
                    **{name: name in row_faults for name in faults},
                    **_keys_of(row),
                }
            )
        if count is not None:
            count(len(stats))
        return {name: [entry[name] for entry in stats] for name in features}

    table = features.arrow_schema.empty_table()
    if len(rows):
        alone = num_proc in (None, 1)  # or another process would have to count
        # Statistics are small; a file in the cache of datasets would never be deleted.
        with progress("tokenized", len(rows)) if alone else nullcontext() as count:
            table = rows.map(
                functools.partial(compute_batch, count=count),
                batched=True,
                batch_size=_BATCH,
                remove_columns=rows.column_names,
                features=features,
                keep_in_memory=True,
                load_from_cache_file=False,
                # Nothing is cached, so the function need not be hashed, which takes 0.1 s.
                new_fingerprint="row_stats",
                num_proc=num_proc,
            ).data
    arrays = {name: table.column(name).to_numpy() for name in (*numbers, *faults)}
    return RowStats(
        drop=table.column("drop").to_pylist(),
        unrendered=table.column("unrendered").to_pylist(),
        tokens=arrays["tokens"],
        prompt=arrays["prompt"],
        sides={side: arrays[side] for side in sides},
        ends={side: arrays[_end(side)] for side in sides} or {"prompt": arrays["prompt"]},
        faults={name: arrays[name] for name in faults},
        row_key=arrays["row_key"],
        prompt_key=arrays["prompt_key"],
        opposite_key=arrays["opposite_key"],
    )


def measure_row(
    parts: Sequence[dict[str, Any]], limits: Limits, *, chat: bool, same_text: bool = False
) -> dict[str, Any]:
    """Count the tokens of a row, and find a reason to drop it.

    parts: the tokenized row; two of them for a pair that becomes two labelled rows.
    same_text: the chat template writes the same text for both sides.
    """
    drop, room = None, limits.room
    max_merged_tokens = None if chat else limits.max_merged_tokens
    counts = {"tokens": 0, "prompt": 0}
    sequences = []
    for at, ids in enumerate(parts):
        prompt = len(ids["prompt_ids"])
        sides = sides_of(ids)
        if len(parts) == 2:
            sides = {("chosen", "rejected")[at]: ids["completion_ids"]}
        if limits.sampled_tokens:
            drop = NO_ROOM if prompt > room else None
            counts["tokens"] += prompt + limits.sampled_tokens
        elif prompt >= room:
            drop = "the prompt alone fills max_length"
        elif not all(sides.values()):
            drop = drop or "the chat template writes nothing for a completion"
        elif max_merged_tokens is not None and ids["merged_tokens"] > max_merged_tokens:
            drop = drop or "several of the prompt's last tokens merge with the completion"
        counts["prompt"] = max(counts["prompt"], prompt)
        for side, tokens in sides.items():
            if limits.drops_longer_rows and prompt + len(tokens) > room:
                drop = drop or LONGER
            counts |= {side: len(tokens), _end(side): prompt + len(tokens)}
            counts["tokens"] += min(prompt + len(tokens), room)
            sequences.append((ids["prompt_ids"], tokens))
    if len(sequences) == 2 and drop is None:
        (prompt_ids, chosen), (other_ids, rejected) = sequences
        if prompt_ids is not other_ids:
            prompt_ids, chosen, rejected = [], prompt_ids + chosen, other_ids + rejected
        left = room - len(prompt_ids)
        if chosen == rejected:
            cause = "the chat template is applied" if same_text else "tokenized"
            drop = f"chosen and rejected are identical once {cause}"
        elif chosen[:left] == rejected[:left]:
            drop = "chosen and rejected are identical after the cut at max_length"
    return {**counts, "drop": drop}


def are_chats(rows: Dataset) -> bool:
    """Check whether rows hold messages, by the types of their columns: there may be no row."""
    columns = {"prompt", "messages"} & set(rows.column_names)
    return any(rows.features[name] != Value("string") for name in columns)


def _end(side: str) -> str:
    return f"{side}_end"


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def prompt_of(row: dict[str, Any]) -> Any:
    """Return the prompt of a row, or the complete row if it has none."""
    if "prompt" in row:
        return row["prompt"]
    messages = row.get("messages")
    if messages is None:
        return row["text"]
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    before = messages[: answers[-1]] if answers else messages
    return before if any(m["role"] in ("user", "tool") for m in before) else messages


def _keys_of(row: dict[str, Any]) -> dict[str, int]:
    """Return the keys of a row, of its prompt, and of the row with the opposite preference or
    label. Each part is digested once; demonstrations have no opposite."""
    parts = {name: row_key(row[name]) for name in sorted(row)}
    opposite = _NO_OPPOSITE
    if "chosen" in row and "rejected" in row:
        swapped = {**parts, "chosen": parts["rejected"], "rejected": parts["chosen"]}
        opposite = hash(tuple(swapped.values()))
    elif "label" in row:
        opposite = hash(tuple({**parts, "label": row_key(not row["label"])}.values()))
    prompt = parts["prompt"] if "prompt" in parts else row_key(prompt_of(row))
    # The hash of a tuple of numbers is the same in every process.
    return dict(zip(_KEYS, (hash(tuple(parts.values())), prompt, opposite), strict=True))


def _comparisons(
    parts: Sequence[dict[str, list[Any]]],
    rendered: Sequence[dict[str, list[str]]],
    rendering: Rendering,
) -> Iterator[tuple[str | None, bool]]:
    """Yield for each row what is not rendered, and whether both sides have the same text."""
    options: Iterable[dict[str, Any]] = template_kwargs(parts[0]) or repeat({})
    for at, own in zip(range(len(next(iter(parts[0].values())))), options, strict=False):
        missing: set[str] = set()
        texts = []
        for columns, sides in zip(parts, rendered, strict=True):
            for side, side_texts in sides.items():
                prompt = columns["prompt"][at] if "prompt" in columns else []
                missing |= rendering.missing(prompt + columns[side][at], side_texts[at], own)
                texts.append(side_texts[at])
        yield ", ".join(sorted(missing)) or None, len(texts) == 2 and texts[0] == texts[1]


def _tokenize(
    columns: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list[Any]],
    texts: dict[str, list[str]] | None,
) -> list[dict[str, Any]]:
    try:
        return tokenize_batch(columns, tokenizer, texts)
    # A chat template is the user's program and may raise any exception.
    except Exception:
        if all(isinstance(values[0], str) for values in columns.values()):
            raise
        for at, (file, number) in enumerate(zip(batch["_file"], batch["_row"], strict=True)):
            try:
                tokenize({name: values[at] for name, values in columns.items()}, tokenizer)
            except Exception as error:
                raise DataError(
                    f"the chat template fails on this row: {last_line(error)}",
                    code="DAT017",
                    place=f"{file}: row {number}",
                    hint="change the row, or the template in model.chat_template",
                ) from None
        raise
