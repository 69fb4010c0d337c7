"""A split: sources -> canonical rows -> the rows that fit; every dropped row is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from prefcli.data.account import Account
from prefcli.data.audit import Audit, row_place
from prefcli.data.canonical_tables import unify
from prefcli.data.convert import COLUMNS, Place, convert, pairs_to_labels
from prefcli.data.digests import rows_digest
from prefcli.data.findings import DROPS, Finding, Tally
from prefcli.data.lengths import Ints, Lengths
from prefcli.data.prompt_part import PromptPart
from prefcli.data.row_sampling import draw_share
from prefcli.data.row_stats import Limits, RowCheck, are_chats, compute_row_stats
from prefcli.data.sources import read
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.formats.training_marks import Training
from prefcli.methods import RowKind
from prefcli.recipe.sections import DataChecks, Source
from prefcli.text import counted


@dataclass(frozen=True)
class Split:
    """Canonical rows of one kind, and their audit."""

    name: str
    rows: Dataset
    """The columns of the kind, and the origin of each row in `_file` and `_row`."""
    read: int
    available: int
    """Rows in the sources; more than `read` for a sample."""
    dropped: dict[str, Tally]
    """Dropped rows by reason."""
    findings: list[Finding]
    notes: list[str]
    tokens: int
    """Tokens of the remaining prompts and completions, after the cut at max_length."""
    lengths: Lengths
    prompts: Ints
    """Keys of the remaining prompts, to find them in another split."""

    @property
    def conversational(self) -> bool:
        return are_chats(self.rows)

    @property
    def is_sample(self) -> bool:
        return self.read < self.available

    @property
    def scale(self) -> float:
        """The factor from a count in the sample to the count in all rows."""
        return self.available / self.read

    def for_trl(self) -> Dataset:
        """Return the columns that a trl trainer takes."""
        return self.rows.remove_columns(["_file", "_row"])

    def share_of(self, finding: str) -> float:
        """Return the share of rows of a finding of `data.checks`; 0 without it."""
        return next((f.share for f in self.findings if f.name == finding), 0.0)

    @property
    def fingerprint(self) -> str:
        """The digest of the rows in their order, whatever file they are from."""
        return rows_digest(self.for_trl())

    def place(self, index: int) -> str:
        """Return the file and number of a row."""
        return row_place(self.rows, index)

    def brief_lines(self) -> list[str]:
        """Count the rows, and those that are dropped."""
        return self.lines()[: 1 + len(self.dropped)]

    def lines(self) -> list[str]:
        """Describe the audit, one finding per line."""
        read = f"a sample of {self.read} of {self.available}" if self.is_sample else str(self.read)
        lines = [f"{read} rows read, {len(self.rows)} kept, {self.tokens} tokens"]
        for reason, dropped in self.dropped.items():
            lines.append(
                f"{counted(dropped.count, 'row')} dropped: {reason} (first: {dropped.rows})"
            )
        # If all rows of a finding are dropped, the lines above have counted them.
        lines += [str(finding) for finding in self.findings if finding.remaining]
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
    part: PromptPart | None = None,
    margins_from: str | None = None,
) -> Split:
    """Load the rows of all sources as `kind`, without those that can't be trained on.

    Raises RecipeError for a wrong path or option, DataError for an invalid row.

    where: dotted path of the sources in the recipe, such as data.train.
    shuffle: shuffle now with the seed, for trainers that keep the order of the rows.
    last_turn: only the last turn of a conversation is the completion.
    sample: read at most that many rows of each source, drawn with the seed.
    train_prompts: keys of prompts that this split should not contain.
    checks: constructors of row checks; the argument is whether the rows are messages.
    margins_from: the column of margins, for a loss that has them.
    part: only the rows whose prompts are in it. Invalid rows count where they would be trained on.
    """
    audit = Audit(limits, train_prompts)
    notes: list[str] = []
    parts, total, available = [], 0, 0
    masks_turns = kind == "demonstration" and not last_turn
    training = Training(limits.assistant_only, limits.trains_prompt) if masks_turns else None
    for i, source in enumerate(sources):
        place = Place.of(sources, i, where)
        raw = read(source, place.where)
        indices, count = draw_share(len(raw), source.share_of(len(raw)), seed, sample)
        account = Account() if part is not None and part.is_held_out else audit.account
        rows = convert(
            raw,
            indices,
            kind,
            place,
            account,
            last_turn=last_turn,
            tools=limits.renders_tools,
            template=str(tokenizer.chat_template or ""),
            training=training,
            margins_from=margins_from,
        )
        if part is not None:
            valid, rows = len(rows), part.select(rows)
            others = valid - len(rows) if account is audit.account else len(indices) - len(rows)
            count = round(count * (1 - others / len(indices)))
            indices = indices[: len(indices) - others]
        total, available = total + len(indices), available + count
        _need_template(rows, tokenizer, place)
        row_checks = [check(are_chats(rows)) for check in checks]
        for check in row_checks:
            audit.cures |= check.cures
        stats = compute_row_stats(rows, tokenizer, kind, limits, num_proc, row_checks)
        keep = audit.add(rows, stats)
        if len(keep) < len(rows):
            rows = rows.select(keep)
        if kind == "labelled" and "chosen" in rows.column_names:
            rows = pairs_to_labels(rows)
        parts.append(rows)
    rows = _join(parts, sources)
    dropped = sum(tally.count for tally in audit.dropped.values())
    notes += audit.account.lines()
    if part is not None:
        notes.append(part.note)
    if not len(rows) and not dropped:
        raise RecipeError(
            Problem(
                "the draw has none of the prompts",
                path="data.eval.from_train",
                hint="write a larger share, or sources of data.eval",
                code="DAT005",
            )
        )
    if not len(rows):
        reasons = ", ".join(f"{reason} ({t.count})" for reason, t in audit.dropped.items())
        raise DataError(
            f"all rows were dropped: {reasons}",
            code="DAT015",
            place=", ".join(dict.fromkeys(s.path for s in sources)),
            hint="; ".join(
                dict.fromkeys(
                    DataChecks.words(name).cure
                    for reason in audit.dropped
                    if (name := DROPS[reason]) is not None
                )
            )
            or None,
        )
    if shuffle:
        rows = rows.shuffle(seed=seed)
    if len(rows) != total - dropped:
        notes.append(f"{len(rows) - (total - dropped)} pairs became two labelled rows each")
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
    sources: Sequence[Source],
    where: str,
    kind: RowKind,
    *,
    last_turn: bool = False,
    margins_from: str | None = None,
) -> str:
    """Check the format of all rows without a tokenizer, and describe the result on one line.

    Raises what `load_split` raises.
    """
    account = Account()
    # Whether the turns of users are trained on depends on the method; a run checks that.
    training = Training(assistant_only=True) if kind == "demonstration" and not last_turn else None
    total = valid = 0
    for i, source in enumerate(sources):
        place = Place.of(sources, i, where)
        raw = read(source, place.where)
        indices = range(len(raw))
        valid += len(
            convert(
                raw,
                indices,
                kind,
                place,
                account,
                last_turn=last_turn,
                training=training,
                margins_from=margins_from,
            )
        )
        total += len(raw)
    reasons = "".join(f"; {reason}: {t.count} ({t.rows})" for reason, t in account.dropped.items())
    return (
        f"{where}: {total} rows read, {valid} rows have a valid format{reasons} "
        "(tokens not counted: no tokenizer)"
    )


def _need_template(rows: Dataset, tokenizer: PreTrainedTokenizerBase, place: Place) -> None:
    if not tokenizer.chat_template and are_chats(rows):
        raise RecipeError(
            Problem(
                f"{place.file} has messages, but the tokenizer has no chat template",
                path="model.chat_template",
                hint="name a .jinja file in model.chat_template, or a template such as chatml",
                code="MDL016",
            )
        )


def _join(parts: list[Dataset], sources: Sequence[Source]) -> Dataset:
    parts = unify(parts)
    for part, source in zip(parts[1:], sources[1:], strict=True):
        if part.features != parts[0].features:
            raise DataError(
                f"its rows are not of the same types as those of {sources[0].path}: "
                f"{_column_types(part)}, but {_column_types(parts[0])} there",
                code="DAT013",
                place=source.path,
                hint="mix only sources of text, or only sources of messages",
            )
    return concatenate_datasets(parts)


def _column_types(rows: Dataset) -> str:
    return ", ".join(
        f"{name} ({'text' if getattr(feature, 'dtype', '') == 'string' else 'messages'})"
        for name, feature in rows.features.items()
        if name in ("prompt", "chosen", "rejected", "completion", "messages", "text")
    )
