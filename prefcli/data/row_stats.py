"""Each canonical row is tokenised once, and what is to be known of its tokens is written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from prefcli.data.lengths import Ints
from prefcli.data.readers import last_line
from prefcli.data.tokenization import assistant_masks, sides_of, tokenize, tokenize_batch
from prefcli.errors import DataError
from prefcli.methods import RowKind

_BATCH = 1000


@dataclass(frozen=True)
class Limits:
    """What a trainer can train on; rows beyond it are dropped, and counted."""

    max_length: int
    """Tokens of prompt and completion; the completion is cut, the prompt must leave room."""
    prompt_margin: int = 0
    """Tokens the trainer may add to a prompt beyond those counted here."""
    max_merged_tokens: int | None = None
    """Tokens of a text prompt that may come out differently beside the completion."""
    assistant_only: bool = False
    """Nothing but what the chat template marks as the assistant's is trained on."""

    @property
    def room(self) -> int:
        return self.max_length - self.prompt_margin


class RowCheck(Protocol):
    """Looks for faults in a tokenised row; a fault's name is a field of `data.checks`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(
        self, ids: Mapping[str, Any], room: int, trained: Sequence[int] | None = None
    ) -> Iterable[str]:
        """The faults of a row as `tokenise` returns it, of which `room` tokens are trained on.

        trained: a mask over prompt and completion, where only marked tokens of them are trained.
        """


@dataclass(frozen=True)
class RowStats:
    """The rows of a source in figures: arrays with an entry a row."""

    drop: list[str | None]
    """Why the row can't be trained on; a key of DROPS."""
    tokens: Ints
    """Of prompt and completions, after the cut."""
    prompt: Ints
    sides: dict[str, Ints]
    """Tokens of each completion, before the cut."""
    ends: dict[str, Ints]
    """Tokens of the prompt and each completion together, before the cut."""
    faults: dict[str, npt.NDArray[np.bool_]]
    row_key: Ints
    """The same for equal rows."""
    prompt_key: Ints
    """The same for equal prompts; of whole texts the text, of messages those before the answer."""
    opposite_key: Ints
    """The row_key of the row that says the opposite; of a demonstration, of no row."""


def measure(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    kind: RowKind,
    limits: Limits,
    num_proc: int | None,
    checks: Sequence[RowCheck] = (),
) -> RowStats:
    """Raises DataError where the chat template refuses a row."""
    chat = are_chats(rows)
    pairs = "chosen" in rows.column_names
    sides = ("chosen", "rejected") if pairs else ("completion",)
    seams = "template_boundary" if chat else "prompt_boundary"
    faults = (seams, *(name for check in checks for name in check.names))
    keys = ("row_key", "prompt_key", "opposite_key")
    figures = ("tokens", "prompt", *sides, *map(_end, sides), *keys)
    features = Features(
        {
            "drop": Value("string"),
            **{name: Value("int64") for name in figures},
            **{name: Value("bool") for name in faults},
        }
    )

    def batch_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = {name: values for name, values in batch.items() if not name.startswith("_")}
        parts = [columns]
        if kind == "labelled" and pairs:
            # trl will see each side alone, and may divide prompt and completion elsewhere.
            parts = [{"prompt": columns["prompt"], "completion": columns[side]} for side in sides]
        ids = zip(*(_tokenize(part, tokenizer, batch) for part in parts), strict=True)
        # Text has no assistant turns, and the caller says so.
        masks = assistant_masks(columns, tokenizer) if limits.assistant_only else None
        found = []
        for row, whole, mask in zip(ids, _rows(columns), masks or repeat(None), strict=False):
            said = {seams} if any(part["seam"] for part in row) else set()
            for check in checks:
                said.update(*(check(part, limits.room, mask) for part in row))
            counted = measure_row(row, limits, chat=chat)
            if mask is not None and not any(mask[: limits.room]):
                # trl drops these without a word.
                counted["drop"] = counted["drop"] or "no assistant token within max_length"
            found.append(
                {
                    **counted,
                    **{name: name in said for name in faults},
                    "row_key": _key(whole),
                    "prompt_key": _key(_asked(whole)),
                    "opposite_key": _key(_opposite(whole)),
                }
            )
        return {name: [row[name] for row in found] for name in features}

    table = features.arrow_schema.empty_table()
    if len(rows):
        # Figures are few and small: a file in the cache would outlive its use.
        table = rows.map(
            batch_of,
            batched=True,
            batch_size=_BATCH,
            remove_columns=rows.column_names,
            features=features,
            keep_in_memory=True,
            load_from_cache_file=False,
            num_proc=num_proc,
        ).data
    arrays = {name: table.column(name).to_numpy() for name in (*figures, *faults)}
    return RowStats(
        drop=table.column("drop").to_pylist(),
        tokens=arrays["tokens"],
        prompt=arrays["prompt"],
        sides={side: arrays[side] for side in sides},
        ends={side: arrays[_end(side)] for side in sides},
        faults={name: arrays[name] for name in faults},
        row_key=arrays["row_key"],
        prompt_key=arrays["prompt_key"],
        opposite_key=arrays["opposite_key"],
    )


def measure_row(parts: Sequence[dict[str, Any]], limits: Limits, *, chat: bool) -> dict[str, Any]:
    """One row, or the two that a pair becomes."""
    drop, room = None, limits.room
    max_merged_tokens = None if chat else limits.max_merged_tokens
    figures = {"tokens": 0, "prompt": 0}
    trained = []
    for at, ids in enumerate(parts):
        prompt = len(ids["prompt_ids"])
        sides = sides_of(ids)
        if len(parts) == 2:
            sides = {("chosen", "rejected")[at]: ids["completion_ids"]}
        if prompt >= room:
            drop = "the prompt alone fills max_length"
        elif not all(sides.values()):
            drop = drop or "the chat template writes nothing for a completion"
        elif max_merged_tokens is not None and ids["seam"] > max_merged_tokens:
            drop = drop or "several of the prompt's last tokens merge with the completion"
        figures["prompt"] = max(figures["prompt"], prompt)
        for side, tokens in sides.items():
            figures |= {side: len(tokens), _end(side): prompt + len(tokens)}
            figures["tokens"] += min(prompt + len(tokens), room)
            trained.append((ids["prompt_ids"] + tokens)[:room])
    if len(trained) == 2 and trained[0] == trained[1]:
        drop = drop or "chosen and rejected are identical after the cut at max_length"
    return {**figures, "drop": drop}


def _end(side: str) -> str:
    return f"{side}_end"


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _asked(row: dict[str, Any]) -> Any:
    """What the model is asked; all of the row where nothing is."""
    if "prompt" in row:
        return row["prompt"]
    messages = row.get("messages")
    if messages is None:
        return row["text"]
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    before = messages[: answers[-1]] if answers else messages
    return before if any(m["role"] in ("user", "tool") for m in before) else messages


def _opposite(row: dict[str, Any]) -> Any:
    """The pair the other way round, or the other label."""
    if "chosen" in row and "rejected" in row:
        return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    return {**row, "label": not row["label"]} if "label" in row else None


def _key(content: Any) -> int:
    text = json.dumps(content).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True)


def _tokenize(
    columns: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, batch: dict[str, list[Any]]
) -> list[dict[str, Any]]:
    try:
        return tokenize_batch(columns, tokenizer)
    # A chat template is a program of the user's, and may end in any exception.
    except Exception:
        if all(isinstance(values[0], str) for values in columns.values()):
            raise
        for at, (file, number) in enumerate(zip(batch["_file"], batch["_row"], strict=True)):
            try:
                tokenize({name: values[at] for name, values in columns.items()}, tokenizer)
            except Exception as error:
                raise DataError(
                    f"the chat template refuses this row: {last_line(error)}",
                    place=f"{file}: row {number}",
                    hint="change the row, or the template in model.chat_template",
                ) from None
        raise


def are_chats(rows: Dataset) -> bool:
    """Do the rows hold messages? By their columns' types: there may be no row."""
    columns = {"prompt", "messages"} & set(rows.column_names)
    return any(rows.features[name] != Value("string") for name in columns)
