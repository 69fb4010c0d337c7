"""The story of a split: sources -> canonical rows -> what fits; nothing is lost uncounted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from prefcli.data.arrow_cache import digest
from prefcli.data.audit import Audit, row_place
from prefcli.data.convert import COLUMNS, Place, convert, pairs_to_labels
from prefcli.data.findings import Finding, Tally
from prefcli.data.lengths import Ints, Lengths
from prefcli.data.row_stats import Limits, RowCheck, are_chats, measure
from prefcli.data.sources import draw, read
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.methods import RowKind
from prefcli.recipe.sections import Source

_RENDERING = ("chat_template_kwargs", "tools")
"""Columns by which other tools render each row's messages in its own way."""


@dataclass(frozen=True)
class Split:
    """Canonical rows of one kind, and what happened on the way."""

    name: str
    rows: Dataset
    """Columns of the kind, and `_file` and `_row`, where each came from."""
    read: int
    available: int
    """Rows the sources have; more than `read` where this is a sample."""
    dropped: dict[str, Tally]
    """Rows left out, by why."""
    findings: list[Finding]
    notes: list[str]
    tokens: int
    """Tokens of all kept rows, prompts and completions, after the cut at max_length."""
    lengths: Lengths
    prompts: Ints
    """Keys of the kept rows' prompts, to be looked for in another split."""

    @property
    def conversational(self) -> bool:
        return are_chats(self.rows)

    @property
    def is_sample(self) -> bool:
        return self.read < self.available

    @property
    def scale(self) -> float:
        """What a figure of a sample is multiplied with, for all rows."""
        return self.available / self.read

    def for_trl(self) -> Dataset:
        """The rows as a trl trainer takes them."""
        return self.rows.remove_columns(["_file", "_row"])

    @property
    def fingerprint(self) -> str:
        """Of what is trained on, in its order: not of the file it came from."""
        return digest(self.for_trl())

    def place(self, index: int) -> str:
        """File and row number of a kept row."""
        return row_place(self.rows, index)

    def lines(self) -> list[str]:
        """What happened to the rows, a line each."""
        read = f"a sample of {self.read} of {self.available}" if self.is_sample else str(self.read)
        lines = [f"{read} rows read, {len(self.rows)} kept, {self.tokens} tokens"]
        for reason, dropped in self.dropped.items():
            lines.append(f"{dropped.count} rows dropped: {reason} (first: {dropped.rows})")
        # What all its rows are dropped for is said above.
        lines += [str(finding) for finding in self.findings if finding.kept]
        return [f"{self.name}: {line}" for line in (*lines, *self.notes, self.lengths.line())]

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "available": self.available,
            "kept": len(self.rows),
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "dropped": {reason: d.count for reason, d in self.dropped.items()},
            "findings": {finding.name: finding.as_dict() for finding in self.findings},
            "lengths": self.lengths.as_dict(),
            "notes": self.notes,
            **({"labels": self._labels()} if "label" in self.rows.column_names else {}),
        }

    def _labels(self) -> dict[str, int]:
        labels = self.rows["label"][:]
        return {"true": sum(labels), "false": len(labels) - sum(labels)}


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
    sample: int | None = None,
    train_prompts: Ints | None = None,
    checks: Sequence[Callable[[bool], RowCheck]] = (),
) -> Split:
    """Rows of `kind` from all sources, without those that can't be trained on.

    where: dotted path of the sources in the recipe, as in data.train.
    shuffle: fix a seeded order now, for trainers that keep the order of the rows.
    last_turn: of a conversation, the last turn alone is the completion.
    sample: look at no more than so many rows of each source, drawn with the seed.
    train_prompts: those of the split that this one must share none with.
    checks: what more to look for in each row's tokens, told whether the rows are messages.
    Raises RecipeError for a wrong path or option, DataError for a wrong row.
    """
    audit = Audit(limits, train_prompts)
    notes: list[str] = []
    parts, total, available = [], 0, 0
    for i, source in enumerate(sources):
        place = Place(source.path, where if len(sources) == 1 else f"{where}[{i}]")
        raw = read(source, place.where)
        notes += [
            f"warning: the column {name} of {source.path} is not read: every row is rendered alike"
            for name in _RENDERING
            if name in raw.column_names
        ]
        indices, count = draw(raw, source.fraction, seed, sample)
        total, available = total + len(indices), available + count
        rows = convert(raw, indices, kind, place, audit.drop, last_turn=last_turn)
        _need_template(rows, tokenizer, place)
        looks = [check(are_chats(rows)) for check in checks]
        keep = audit.enter(rows, measure(rows, tokenizer, kind, limits, num_proc, looks))
        if len(keep) < len(rows):
            rows = rows.select(keep)
        if kind == "labelled" and "chosen" in rows.column_names:
            rows = pairs_to_labels(rows)
        parts.append(rows)
    rows = _join(parts, sources)
    left = sum(tally.count for tally in audit.dropped.values())
    if not len(rows):
        reasons = ", ".join(f"{why} ({tally.count})" for why, tally in audit.dropped.items())
        raise DataError(
            f"no rows are left; dropped: {reasons}",
            place=", ".join(dict.fromkeys(s.path for s in sources)),
        )
    if shuffle:
        rows = rows.shuffle(seed=seed)
    if len(rows) != total - left:
        notes.append(f"{len(rows) - (total - left)} pairs became two labelled rows each")
    return Split(
        name=where.rpartition(".")[2],
        rows=rows.select_columns(
            [c for c in (*COLUMNS[kind], "_file", "_row") if c in rows.column_names]
        ),
        read=total,
        available=available,
        dropped=audit.dropped,
        findings=audit.findings(total),
        notes=notes,
        tokens=audit.tokens,
        lengths=audit.lengths(),
        prompts=audit.prompts,
    )


def check_shape(
    sources: Sequence[Source], where: str, kind: RowKind, *, last_turn: bool = False
) -> str:
    """What `load_split` can tell without a tokenizer, in words: are the rows of the right shape?

    Raises as `load_split` does.
    """
    dropped: dict[str, Tally] = {}

    def drop(why: str, row: str) -> None:
        dropped.setdefault(why, Tally()).add(lambda: row)

    total = kept = 0
    for i, source in enumerate(sources):
        place = Place(source.path, where if len(sources) == 1 else f"{where}[{i}]")
        raw = read(source, place.where)

        kept += len(convert(raw, range(len(raw)), kind, place, drop, last_turn=last_turn))
        total += len(raw)
    lost = "".join(f"; {why}: {tally.count} ({tally.rows})" for why, tally in dropped.items())
    return f"{where}: {total} rows read, {kept} of the right shape{lost}; no tokenizer, no tokens"


def _need_template(rows: Dataset, tokenizer: PreTrainedTokenizerBase, place: Place) -> None:
    if not tokenizer.chat_template and are_chats(rows):
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
