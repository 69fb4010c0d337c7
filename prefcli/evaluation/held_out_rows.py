"""Held-out rows, with the groups that an evaluation is split by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from prefcli.data import Limits, Split, load_split
from prefcli.data.convert import Place, kind_of
from prefcli.data.digests import row_key
from prefcli.data.prompt_part import prompt_parts
from prefcli.data.row_stats import prompt_of
from prefcli.data.sources import RawRows, read
from prefcli.errors import Problem, RecipeError
from prefcli.evaluation.arguments import named_by
from prefcli.evaluation.bootstrap import Ints
from prefcli.methods import Method, RowKind
from prefcli.recipe import Recipe
from prefcli.recipe.sections import Source
from prefcli.text import did_you_mean

DATA_OPTION = "--data"
_AUTOMATIC = ("subset", "source")
"""Columns that rows are grouped by if they have them: RewardBench's, and that of mixed data."""
_MOST_GROUPS = 60
"""Values of an automatic column beyond which it does not group rows."""
_EMPTY = "(empty)"


@dataclass(frozen=True)
class HeldOutRows:
    """Rows to evaluate on, in their order."""

    kind: RowKind
    split: Split
    prompts: Ints
    """A key per row, equal for equal prompts."""
    groups: dict[str, list[str]]
    """Name of a column: the value of each row as text."""

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """The labels of labelled rows; all true for other rows."""
        if self.kind != "labelled":
            return np.ones(len(self.split.rows), np.bool_)
        return np.array(self.split.rows["label"][:], np.bool_)


def held_out_sources(recipe: Recipe, data: str | None) -> tuple[list[Source], str]:
    """Return the sources of the rows, and their path in messages. Raises RecipeError.

    data: a file, a folder or a hub id that replaces data.eval.
    """
    if data is not None:
        return [data_source(data, recipe, DATA_OPTION)], DATA_OPTION
    if recipe.data.eval is None:
        raise RecipeError(
            Problem(
                "the recipe has no held-out rows",
                path="data.eval",
                code="RCP040",
                hint="name a file with --data FILE, or write data.eval in the recipe, e.g. "
                "data.eval={from_train: 0.05}",
            )
        )
    return recipe.data.eval_sources or recipe.data.train, "data.eval"


def data_source(data: str, recipe: Recipe, argument: str) -> Source:
    """Return a source for rows that the command line names. Raises RecipeError.

    Texts are read as turns of a chat if those of data.train are.
    """
    try:
        return Source(path=data, chat=all(source.chat for source in recipe.data.train))
    except ValidationError:
        raise RecipeError(
            f"no such data file: {data!r}",
            code="DAT003",
            place=argument,
            hint="name a .jsonl, .json, .parquet or .csv file, a folder of them, or a dataset on "
            "the hub",
        ) from None


def load_held_out(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | None = None,
    columns: Sequence[str] = (),
) -> HeldOutRows:
    """Load the rows that can be scored. Raises RecipeError and DataError.

    columns: further columns of the data to group rows by.
    """
    sources, where = held_out_sources(recipe, data)
    with named_by(DATA_OPTION):
        raw = [read(source, where) for source in sources]
        kind = kind_of(raw[0], Place.of(sources, 0, where))
        split = load_split(
            sources,
            where,
            kind,
            tokenizer,
            limits=Limits(
                recipe.data.max_length,
                method.trainer.prompt_margin,
                renders_tools=method.trainer.renders_tools,
                drops_longer_rows=method.trainer.drops_longer_rows,
            ),
            seed=recipe.seed,
            num_proc=recipe.data.num_proc,
            part=None if data is not None else prompt_parts(recipe.data.held_out, recipe.seed)[0],
        )
    prompts = np.array([row_key(prompt_of(row)) for row in split.for_trl()], np.int64)
    return HeldOutRows(kind, split, prompts, _groups(split, raw, columns))


def _groups(split: Split, raw: Sequence[RawRows], columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the groups of each row, by column. Raises RecipeError for an unknown column."""
    names = list(dict.fromkeys(name for rows in raw for name in rows.column_names))
    for column in columns:
        if column not in names:
            raise RecipeError(
                f"the rows have no column {column!r}",
                code="DAT009",
                place="--group",
                hint=did_you_mean(column, names) or f"write one of {', '.join(names)}",
            )
    automatic = [name for name in _AUTOMATIC if name in names and name not in columns]
    places = list(zip(split.rows["_file"][:], split.rows["_row"][:], strict=True))
    groups = {}
    known = set(places)
    for column in (*columns, *automatic):
        values = {
            place: _as_text(rows.row(i).get(column))
            for rows in raw
            for i in range(len(rows))
            if (place := rows.place(i)) in known
        }
        labels = [values[place] for place in places]
        if column in columns or 1 < len(set(labels)) <= _MOST_GROUPS:
            groups[column] = labels
    files = [file for file, _ in places]
    if len(set(files)) > 1:
        groups["file"] = files
    return groups


def _as_text(value: object) -> str:
    return _EMPTY if value in (None, "") else str(value)
