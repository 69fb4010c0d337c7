"""The story of a split: sources -> canonical rows -> what fits; nothing is lost uncounted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from prefcli.data.convert import COLUMNS, Dropped, Place, convert, pairs_to_labels
from prefcli.data.files import last_line
from prefcli.data.sources import read, sample
from prefcli.data.tokens import tokenise, tokenise_all
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.methods import RowKind
from prefcli.recipe.sections import Source

_BATCH = 1000
_MEASURES = Features(
    {
        "tokens": Value("int64"),
        "seams": Value("int64"),
        "cut": Value("int64"),
        "drop": Value("string"),
    }
)


@dataclass(frozen=True)
class Limits:
    """What a trainer can train on; rows beyond it are dropped, and counted."""

    max_length: int
    """Tokens of prompt and completion; the completion is cut, the prompt must leave room."""
    prompt_margin: int = 0
    """Tokens the trainer may add to a prompt beyond those counted here."""
    max_seam: int | None = None
    """Tokens of a text prompt that may come out differently beside the completion."""
    assistant_only: bool = False
    """Nothing but what the chat template marks as the assistant's is trained on."""

    @property
    def room(self) -> int:
        return self.max_length - self.prompt_margin


@dataclass(frozen=True)
class Split:
    """Canonical rows of one kind, and what happened on the way."""

    name: str
    rows: Dataset
    """Columns of the kind, and `_file` and `_row`, where each came from."""
    read: int
    dropped: dict[str, Dropped]
    notes: list[str]
    tokens: int
    """Tokens of all kept rows, prompts and completions, after the cut at max_length."""

    @property
    def conversational(self) -> bool:
        return _is_chat(self.rows)

    def for_trl(self) -> Dataset:
        """The rows as a trl trainer takes them."""
        return self.rows.remove_columns(["_file", "_row"])

    def place(self, index: int) -> str:
        """File and row number of a kept row."""
        return _place(self.rows[index])

    def lines(self) -> list[str]:
        """What happened to the rows, a line each."""
        lines = [f"{self.name}: {self.read} rows read, {len(self.rows)} kept, {self.tokens} tokens"]
        for reason, dropped in self.dropped.items():
            lines.append(
                f"{self.name}: {dropped.count} rows dropped: {reason} "
                f"(first: {', '.join(dropped.first)})"
            )
        return lines + [f"{self.name}: {note}" for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": len(self.rows),
            "tokens": self.tokens,
            "dropped": {reason: d.count for reason, d in self.dropped.items()},
            "notes": self.notes,
        }


def load_split(
    sources: Sequence[Source],
    where: str,
    kind: RowKind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limits: Limits,
    seed: int,
    shuffle: bool = False,
    last_turn: bool = False,
    num_proc: int | None = None,
) -> Split:
    """Rows of `kind` from all sources, without those that can't be trained on.

    where: dotted path of the sources in the recipe, as in data.train.
    shuffle: fix a seeded order now, for trainers that keep the order of the rows.
    last_turn: of a conversation, the last turn alone is the completion.
    Raises RecipeError for a wrong path or option, DataError for a wrong row.
    """
    dropped: dict[str, Dropped] = {}
    parts, total, tokens, seams, cut = [], 0, 0, 0, 0
    for i, source in enumerate(sources):
        place = Place(source.path, where if len(sources) == 1 else f"{where}[{i}]")
        raw = read(source, place.where)
        indices = sample(raw, source.fraction, seed)
        total += len(indices)
        rows = convert(raw, indices, kind, place, dropped, last_turn=last_turn)
        _need_template(rows, tokenizer, place)
        measures = _measure(rows, tokenizer, kind, limits, num_proc)
        keep = []
        for at, measure in enumerate(measures):
            if measure["drop"]:
                dropped.setdefault(measure["drop"], Dropped()).add(_place(rows[at]))
                continue
            keep.append(at)
            tokens += measure["tokens"]
            seams += measure["seams"]
            cut += measure["cut"]
        if len(keep) < len(rows):
            rows = rows.select(keep)
        if kind == "labelled" and "chosen" in rows.column_names:
            rows = pairs_to_labels(rows)
        parts.append(rows)
    rows = _join(parts, sources)
    if not len(rows):
        reasons = ", ".join(f"{why} ({d.count})" for why, d in dropped.items())
        raise DataError(
            f"no rows are left; dropped: {reasons}",
            place=", ".join(dict.fromkeys(s.path for s in sources)),
        )
    if shuffle:
        rows = rows.shuffle(seed=seed)
    left = sum(d.count for d in dropped.values())
    notes = _notes(len(rows), seams, cut, limits.max_length)
    if len(rows) != total - left:
        notes.insert(0, f"{len(rows) - (total - left)} pairs became two labelled rows each")
    return Split(
        name=where.rpartition(".")[2],
        rows=rows.select_columns(
            [c for c in (*COLUMNS[kind], "_file", "_row") if c in rows.column_names]
        ),
        read=total,
        dropped=dropped,
        notes=notes,
        tokens=tokens,
    )


def _measure(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    kind: RowKind,
    limits: Limits,
    num_proc: int | None,
) -> list[dict[str, Any]]:
    """For each row: its tokens, seams and cuts, and why it is dropped, if it is."""
    if not len(rows):
        return []
    chat = _is_chat(rows)

    def measure(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = {name: values for name, values in batch.items() if not name.startswith("_")}
        if kind == "labelled" and "chosen" in columns:
            # trl will see each side alone, and may divide prompt and completion elsewhere.
            sides = [
                {"prompt": columns["prompt"], "completion": columns[side]}
                for side in ("chosen", "rejected")
            ]
        else:
            sides = [columns]
        ids = zip(*(_tokenise(side, tokenizer, batch) for side in sides), strict=True)
        found = [_measure_row(row, limits, chat=chat) for row in ids]
        if limits.assistant_only:
            _drop_unmarked(columns, tokenizer, found, limits)
        return {key: [row[key] for row in found] for key in _MEASURES}

    # Counts are few and small: a file in the cache would outlive its use.
    measured = rows.map(
        measure,
        batched=True,
        batch_size=_BATCH,
        remove_columns=rows.column_names,
        features=_MEASURES,
        keep_in_memory=True,
        load_from_cache_file=False,
        num_proc=num_proc,
    )
    return list(measured)


def _measure_row(parts: Sequence[dict[str, Any]], limits: Limits, *, chat: bool) -> dict[str, Any]:
    """One row, or the two that a pair becomes."""
    drop, room = None, limits.room
    max_seam = None if chat else limits.max_seam
    tokens = seams = cut = 0
    for ids in parts:
        prompt = len(ids["prompt_ids"])
        sides = [ids[key] for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in ids]
        if prompt >= room:
            drop = "the prompt alone fills max_length"
        elif not all(sides):
            drop = drop or "the chat template writes nothing for a completion"
        elif max_seam is not None and ids["seam"] > max_seam:
            drop = drop or "several of the prompt's last tokens merge with the completion"
        elif "rejected_ids" in ids and sides[0][: room - prompt] == sides[1][: room - prompt]:
            drop = drop or "chosen and rejected are identical after the cut at max_length"
        tokens += sum(min(prompt + len(side), room) for side in sides)
        seams += ids["seam"] > 0
        cut += any(prompt + len(side) > room for side in sides)
    return {"tokens": tokens, "seams": seams, "cut": cut, "drop": drop}


def _drop_unmarked(
    columns: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    found: list[dict[str, Any]],
    limits: Limits,
) -> None:
    """Drop rows without an assistant token that is trained; trl does so without a word."""
    if "messages" in columns:
        chats = columns["messages"]
    elif "prompt" in columns and isinstance(columns["prompt"][0], list):
        chats = [p + c for p, c in zip(columns["prompt"], columns["completion"], strict=True)]
    else:
        return  # text has no assistant turns, and the caller says so
    masks = tokenizer.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    for row, mask in zip(found, masks, strict=True):
        if not any(mask[: limits.room]):
            row["drop"] = row["drop"] or "no assistant token within max_length"


def _tokenise(
    columns: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, batch: dict[str, list[Any]]
) -> list[dict[str, Any]]:
    try:
        return tokenise_all(columns, tokenizer)
    # A chat template is a program of the user's, and may end in any exception.
    except Exception:
        if all(isinstance(values[0], str) for values in columns.values()):
            raise
        for at, (file, number) in enumerate(zip(batch["_file"], batch["_row"], strict=True)):
            try:
                tokenise({name: values[at] for name, values in columns.items()}, tokenizer)
            except Exception as error:
                raise DataError(
                    f"the chat template refuses this row: {last_line(error)}",
                    place=f"{file}: row {number}",
                    hint="change the row, or the template in model.chat_template",
                ) from None
        raise


def _need_template(rows: Dataset, tokenizer: PreTrainedTokenizerBase, place: Place) -> None:
    if not tokenizer.chat_template and _is_chat(rows):
        raise RecipeError(
            Problem(
                f"{place.file} holds messages, but the tokenizer has no chat template",
                path="model.chat_template",
                hint="name a .jinja file in model.chat_template",
            )
        )


def _is_chat(rows: Dataset) -> bool:
    columns = {"prompt", "messages"} & set(rows.column_names)
    return any(rows.features[name] != Value("string") for name in columns)


def _place(row: dict[str, Any]) -> str:
    return f"{row['_file']}: row {row['_row']}"


def _join(parts: list[Dataset], sources: Sequence[Source]) -> Dataset:
    for part, source in zip(parts[1:], sources[1:], strict=True):
        if part.features != parts[0].features:
            raise DataError(
                f"its rows are of another shape than those of {sources[0].path}: "
                f"{_shape(part)} beside {_shape(parts[0])}",
                place=source.path,
                hint="mix sources of one shape: all text or all messages",
            )
    return concatenate_datasets(parts)


def _shape(rows: Dataset) -> str:
    return ", ".join(
        f"{name} ({'text' if getattr(feature, 'dtype', '') == 'string' else 'messages'})"
        for name, feature in rows.features.items()
        if not name.startswith("_") and name != "label"
    )


def _notes(kept: int, seams: int, cut: int, max_length: int) -> list[str]:
    notes = []
    if cut:
        notes.append(f"{cut} of {kept} rows are cut at max_length {max_length}")
    if seams:
        notes.append(
            f"in {seams} of {kept} rows the prompt's last tokens merge with the completion; "
            "they are trained as completion"
        )
    return notes
