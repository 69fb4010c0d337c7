"""The story of a split: sources -> canonical rows -> what fits; nothing is lost uncounted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, concatenate_datasets
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from prefcli.data.convert import COLUMNS, Place, convert, pairs_to_labels
from prefcli.data.sources import read, sample
from prefcli.data.tokens import tokenise
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.methods import RowKind
from prefcli.recipe.schema import Source

_SHOWN_ROWS = 3


@dataclass
class Dropped:
    """Rows left out for one reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN_ROWS:
            self.first.append(place)


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
        return any(
            name in self.rows.column_names and not isinstance(self.rows[0][name], str)
            for name in ("prompt", "messages")
        )

    def for_trl(self) -> Dataset:
        """The rows as a trl trainer takes them."""
        return self.rows.remove_columns(["_file", "_row"])

    def place(self, index: int) -> str:
        """File and row number of a kept row."""
        row = self.rows[index]
        return f"{row['_file']}: row {row['_row']}"

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
    max_length: int,
    seed: int,
    prompt_margin: int = 0,
    shuffle: bool = False,
    num_proc: int | None = None,
) -> Split:
    """Rows of `kind` from all sources, without those that can't be trained on.

    where: dotted path of the sources in the recipe, as in data.train.
    prompt_margin: tokens the trainer may add to a prompt beyond those counted here.
    shuffle: fix a seeded order now, for trainers that keep the order of the rows.
    Raises RecipeError for a wrong path or option, DataError for a wrong row.
    """
    dropped: dict[str, Dropped] = {}
    parts, total, seams, cut = [], 0, 0, 0
    for i, source in enumerate(sources):
        place = Place(source.path, where if len(sources) == 1 else f"{where}[{i}]")
        raw = read(source, place.where)
        indices = sample(raw, source.fraction, seed)
        total += len(indices)
        converted = convert(raw, indices, kind, place, num_proc)
        _need_template(converted, tokenizer, place)
        measured = _measure(converted, tokenizer, max_length - prompt_margin, place, num_proc)
        keep = []
        for at, (row, why) in enumerate(zip(measured["_row"], measured["_drop"], strict=True)):
            if why:
                dropped.setdefault(why, Dropped()).add(f"{source.path}: row {row}")
            else:
                keep.append(at)
        measured = measured.select(keep)
        measured = measured.add_column("_file", [source.path] * len(keep))
        seams += sum(n > 0 for n in measured["_seam"])
        cut += sum(measured["_cut"])
        parts.append(measured)
    rows = _join(parts, sources)
    if not len(rows):
        reasons = "; ".join(f"{d.count} {why}" for why, d in dropped.items())
        raise DataError(f"no rows are left: {reasons}", place=", ".join(s.path for s in sources))
    tokens = sum(rows["_tokens"])
    if kind == "labelled" and "chosen" in rows.column_names:
        rows = pairs_to_labels(rows)
    if shuffle:
        rows = rows.shuffle(seed=seed)
    split = where.rpartition(".")[2]
    return Split(
        name=split,
        rows=rows.select_columns(
            [c for c in (*COLUMNS[kind], "_file", "_row") if c in rows.column_names]
        ),
        read=total,
        dropped=dropped,
        notes=_notes(len(rows), seams, cut, max_length),
        tokens=tokens,
    )


def _measure(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt: int,
    place: Place,
    num_proc: int | None,
) -> Dataset:
    """Add `_tokens`, `_seam`, `_cut`, and `_drop` rows whose prompt leaves no room."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        if row["_drop"]:
            return {"_tokens": 0, "_seam": 0, "_cut": False, "_drop": row["_drop"]}
        try:
            ids = tokenise(row, tokenizer)
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses this row: {error}",
                place=f"{place.file}: row {row['_row']}",
            ) from None
        prompt = len(ids["prompt_ids"])
        lengths = [prompt + len(v) for k, v in ids.items() if k.endswith("_ids") and k[0] != "p"]
        return {
            "_tokens": sum(min(n, max_prompt) for n in lengths),
            "_seam": ids["seam"],
            "_cut": any(n > max_prompt for n in lengths),
            "_drop": "the prompt alone fills max_length" if prompt >= max_prompt else None,
        }

    return rows.map(one, load_from_cache_file=False, num_proc=num_proc)


def _need_template(rows: Dataset, tokenizer: PreTrainedTokenizerBase, place: Place) -> None:
    chat = any(c in rows.column_names and isinstance(rows[0][c], list) for c in ("prompt", "messages"))
    if chat and tokenizer.chat_template is None:
        raise RecipeError(
            Problem(
                f"{place.file} holds messages, but the tokenizer has no chat template",
                path="model.chat_template",
                hint="name a .jinja file in model.chat_template",
            )
        )


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
