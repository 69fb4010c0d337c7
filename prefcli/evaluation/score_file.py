"""Rewards of the responses in a file, written next to its rows."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefcli.checkpoints.disk import write_errors_reported
from prefcli.console import say
from prefcli.data.convert import Place
from prefcli.data.digests import folder_digest, row_key, tokenizer_digest
from prefcli.data.row_writer import row_writer
from prefcli.data.sources import RawRows, read
from prefcli.errors import DataError
from prefcli.evaluation.arguments import named_by
from prefcli.evaluation.best_of import BestOf, Distribution, best_of, distribution
from prefcli.evaluation.bootstrap import Floats
from prefcli.evaluation.candidates import CandidateReader, Layout
from prefcli.evaluation.held_out_rows import data_source
from prefcli.evaluation.partial_file import PartialFile, stoppable
from prefcli.evaluation.ranks import rank, score_columns
from prefcli.evaluation.scorers import Scorer
from prefcli.progress_bar import progress
from prefcli.recipe import Recipe
from prefcli.text import counted

DATA_ARGUMENT = "DATA"
CHUNK = 128
"""Rows whose scores are written at once; a restart repeats at most these."""
_PARTIAL = ".partial"
"""Suffix of the scores while they are computed."""


@dataclass(frozen=True)
class ScoreSummary:
    """The result of `prefcli score`."""

    output: str
    description: str
    rows: int
    responses: int
    prompts: int
    unscored: int
    """Responses whose prompt alone fills max_length."""
    mean: float | None
    best: float | None
    """Mean reward of the best response of each prompt."""
    best_of: list[BestOf] = field(default_factory=list)
    distribution: Distribution | None = None
    chosen_is_best: float | None = None
    """Share of pairs whose chosen response has the higher reward; a tie counts one half."""

    def lines(self) -> list[str]:
        """Describe the result."""
        lines = [
            f"score: {counted(self.responses, 'response')} to {counted(self.prompts, 'prompt')}, "
            f"written to {self.output}",
        ]
        if self.mean is not None and self.best is not None:
            lines.append(
                f"score: mean reward {self.mean:+.3f}; of the best response to each prompt "
                f"{self.best:+.3f}"
            )
        if self.chosen_is_best is not None:
            lines.append(
                f"score: the chosen response has the higher reward in {self.chosen_is_best:.1%} of "
                "the pairs"
            )
        if self.unscored:
            lines.append(
                f"score: {counted(self.unscored, 'response')} without a reward: the prompt alone "
                "fills data.max_length"
            )
        return lines


def open_rows(recipe: Recipe, data: str) -> RawRows:
    """Open the rows that the command line names. Raises RecipeError and DataError."""
    source = data_source(data, recipe, DATA_ARGUMENT)
    with named_by(DATA_ARGUMENT):
        return read(source, DATA_ARGUMENT)


def score_file(recipe: Recipe, data: str, output: Path, scorer: Scorer) -> ScoreSummary:
    """Score the responses of each row, and write the rows with their scores.

    An earlier start that was stopped is continued. Raises RecipeError and DataError.
    """
    rows = open_rows(recipe, data)
    place = Place(data, DATA_ARGUMENT, chat=scorer.chat)
    reader = CandidateReader(rows, place)
    _refuse_columns(rows, reader.layout, scorer.names)
    settings = {
        **scorer.facts,
        "data": _data_digest(data, rows),
        "rows": len(rows),
        "chat": scorer.chat,
        "tokenizer": tokenizer_digest(scorer.tokenizer),
    }
    say(f"score: {scorer.description}")
    cure = "name another file with --output"
    partial_file = PartialFile(output.with_suffix(_PARTIAL), settings, cure)
    with write_errors_reported(output), partial_file as partial:
        _score_rows(reader, scorer, partial)
        summary = _write(rows, reader.layout, partial, output, scorer)
        partial.remove()
    return summary


def _data_digest(data: str, rows: RawRows) -> Any:
    path = Path(data).expanduser()
    return folder_digest(path) if path.exists() else [part.fingerprint for part in rows.parts]


def _score_rows(reader: CandidateReader, scorer: Scorer, partial: PartialFile) -> None:
    """Score the rows that the file does not have yet. Raises PreemptedError if it is stopped."""
    total, done = len(reader), sum(1 for _ in _rows(partial))
    if done:
        say(f"score: continuing after {done:,} of {total:,} rows")
    with (
        stoppable(partial, lambda: done, total, "rows, whose scores"),
        progress("score", total, done=done) as count,
    ):
        while done < total:
            indices = range(done, min(done + CHUNK, total))
            partial.add(_score_chunk(reader, scorer, indices))
            done += len(indices)
            count(len(indices))


def _score_chunk(
    reader: CandidateReader, scorer: Scorer, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a key of the prompt and the numbers of each response, by row."""
    prompts, token_rows = zip(*(reader.read(i, scorer.tokenizer) for i in indices), strict=True)
    numbers = iter(scorer.score([row for some in token_rows for row in some]))
    return [
        {"group": row_key(prompt), "scores": [next(numbers) for _ in some]}
        for prompt, some in zip(prompts, token_rows, strict=True)
    ]


def _rows(partial: PartialFile) -> Iterator[dict[str, Any]]:
    """Yield what `_score_chunk` returned for each row."""
    for chunk in partial.values():
        yield from chunk


def _write(
    rows: RawRows,
    layout: Layout,
    partial: PartialFile,
    output: Path,
    scorer: Scorer,
) -> ScoreSummary:
    """Write the output completely or not at all."""
    groups, values = _groups_and_rewards(partial, by_row=layout != "single")
    ranks, best = rank(values, groups)
    written = output.with_name(output.name + ".writing")

    def scored_rows() -> Iterator[dict[str, Any]]:
        at = 0
        for index, line in enumerate(_rows(partial)):
            scores = line["scores"]
            part = slice(at, at + len(scores))
            at += len(scores)
            places = ranks[part].tolist(), best[part].tolist()
            columns = score_columns(layout, scorer.names, scores, *places)
            yield {**rows.as_written(index), **columns}

    try:
        row_writer(output.suffix)(written, scored_rows)
        os.replace(written, output)
    finally:
        written.unlink(missing_ok=True)
    valid = ~np.isnan(values)
    is_pair = layout == "pair"
    parts = {"all responses": valid, "best of each prompt": best}
    if is_pair:  # the chosen response of each comes first
        is_chosen = np.tile([True, False], len(values) // 2)
        parts = {"chosen": is_chosen, "rejected": ~is_chosen}
    return ScoreSummary(
        output=str(output),
        description=scorer.description,
        rows=len(rows),
        responses=len(values),
        prompts=len(np.unique(groups)),
        unscored=int((~valid).sum()),
        mean=float(values[valid].mean()) if valid.any() else None,
        best=float(values[best].mean()) if best.any() else None,
        best_of=[] if is_pair else best_of(values, groups),
        distribution=distribution(values, parts),
        chosen_is_best=_share_of_wins(values[::2], values[1::2]) if is_pair else None,
    )


def _share_of_wins(chosen: Floats, rejected: Floats) -> float | None:
    wins = (np.sign(chosen - rejected) + 1) / 2
    return None if np.isnan(wins).all() else float(np.nanmean(wins))


def _groups_and_rewards(partial: PartialFile, *, by_row: bool) -> tuple[Any, Any]:
    """Return the group and the reward of each response: 16 bytes of memory for each.

    by_row: the responses of a row are a group, and else those of all rows with the same prompt.
    """
    groups, values = array("q"), array("d")
    for index, line in enumerate(_rows(partial)):
        for one in line["scores"]:
            groups.append(index if by_row else line["group"])
            values.append(math.nan if one["reward"] is None else one["reward"])
    return np.array(groups, np.int64), np.array(values, np.float64)


def _refuse_columns(rows: RawRows, layout: Layout, names: Sequence[str]) -> None:
    """Raise DataError if the data has a column with the name of a new one."""
    empty = dict.fromkeys(names)
    added = score_columns(layout, names, [empty, empty], [0, 0], [False, False])
    for name in rows.column_names:
        if name in added:
            raise DataError(
                f"the rows have a column {name!r} already",
                code="DAT030",
                place=rows.place(0)[0],
                hint="rename it: the scores get this name",
            )
