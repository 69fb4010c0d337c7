"""Margins of the pairs that a run would train on, each by models that were not trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefcli.data.digests import row_key
from prefcli.data.row_stats import prompt_of
from prefcli.data.run_datasets import load_run_datasets
from prefcli.data.split import Split
from prefcli.errors import PrefcliError, RecipeError
from prefcli.evaluation.bootstrap import Floats, Ints
from prefcli.evaluation.candidates import Candidates
from prefcli.evaluation.logprobs import Row as TokenRow
from prefcli.evaluation.scorers import (
    RewardFormula,
    Scorer,
    policy_scorer,
    reward_model_scorer,
)
from prefcli.formats import detect
from prefcli.formats.cells import prepare
from prefcli.formats.chat_columns import template_columns
from prefcli.methods import Method
from prefcli.model import load_tokenizer
from prefcli.progress_bar import progress
from prefcli.recipe import Recipe, load
from prefcli.report.run_data import RECIPE_FILE, RECORD_FILE, read_run

SCORED_OPTION = "--scored"
_CHUNK = 256
"""Pairs that are scored at once."""


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs that have a margin."""

    rows: Ints
    """Their indices in the split."""
    margins: Floats
    """Reward of chosen minus that of rejected; the mean of several models."""
    prompts: Ints
    """A key per pair, equal for equal prompts."""
    trained_on: int
    """Pairs without a margin, since each model was trained on their prompts."""
    too_long: int
    """Pairs without a margin, since the prompt fills max_length."""
    models: list[str]
    """Descriptions of the models and their rewards."""


@dataclass(frozen=True)
class _PairModel:
    """A model that scores pairs, and the prompts that it was trained on."""

    scorer: AbstractContextManager[Scorer]
    trained_prompts: Ints


def score_pairs(
    recipe: Recipe,
    method: Method,
    split: Split,
    *,
    models: Sequence[str] = (),
    reward_model: str | None = None,
) -> ScoredPairs:
    """Score the pairs of a split with each model. Raises RecipeError and DataError.

    models: hub ids, folders and runs. reward_model: one of these that is a reward model. A run
    does not score the pairs whose prompts it was trained on: a model agrees with the labels that it
    has seen.
    """
    if "chosen" not in split.rows.column_names:
        raise RecipeError(
            f"the rows of {method.name} are not pairs, which is what {SCORED_OPTION} compares",
            code="RCP041",
            hint="name a method of pairs with --method, e.g. --method dpo",
        )
    scorers = [_PairModel(_policy(recipe, method, name), _trained_prompts(name)) for name in models]
    if reward_model is not None:
        own = reward_model_scorer(recipe, reward_model)
        scorers.append(_PairModel(own, _trained_prompts(reward_model)))
    prompts = np.array([row_key(prompt_of(row)) for row in split.for_trl()], np.int64)
    unseen = [~np.isin(prompts, scorer.trained_prompts) for scorer in scorers]
    if not np.logical_or.reduce(unseen).any():
        raise RecipeError(
            f"{', '.join([*models, *filter(None, [reward_model])])} was trained on all of these "
            "prompts, and a model agrees with the labels that it was trained on",
            code="RCP042",
            place=SCORED_OPTION,
            hint="train a run on each half, with data.train.split='train[:50%]' and 'train[50%:]', "
            "and name both: --scored RUN --scored RUN",
        )
    sums, counts = np.zeros(len(prompts)), np.zeros(len(prompts))
    descriptions = []
    for scorer, mask in zip(scorers, unseen, strict=True):
        with scorer.scorer as opened:
            descriptions.append(opened.description)
            rows = np.flatnonzero(mask)
            margins = _margins(split, rows, opened)
        sums[rows] += np.nan_to_num(margins)
        counts[rows] += ~np.isnan(margins)
    scored = np.flatnonzero(counts)
    seen = ~np.logical_or.reduce(unseen)
    return ScoredPairs(
        rows=scored,
        margins=sums[scored] / counts[scored],
        prompts=prompts[scored],
        trained_on=int(seen.sum()),
        too_long=len(prompts) - len(scored) - int(seen.sum()),
        models=descriptions,
    )


def _policy(recipe: Recipe, method: Method, name: str) -> AbstractContextManager[Scorer]:
    """Return the scorer of a model with the method's own reward."""
    formula = RewardFormula(
        beta=method.reward_scale,
        with_reference=method.needs_reference,
        per_token=not method.reward_is_sum,
    )
    return policy_scorer(recipe, name, formula)


def _trained_prompts(model: str) -> Ints:
    """Return keys of the prompts that a run was trained on; none for a model without its run.

    model: a run, or a model or checkpoint in its folder.
    """
    folder = Path(model).expanduser()
    runs = (run for run in (folder, folder.parent) if (run / RECORD_FILE).is_file())
    run = next((run for run in runs if (run / RECIPE_FILE).is_file()), None)
    if run is None:
        return np.zeros(0, np.int64)
    loaded = load(str(run / RECIPE_FILE))
    methods = loaded.recipe.methods
    method = methods.get(read_run(str(run)).method) or next(iter(methods.values()))
    try:
        tokenizer = load_tokenizer(loaded.recipe.model)
        return load_run_datasets(loaded.recipe, method, tokenizer).train.prompts
    except PrefcliError as error:
        # The keys of these problems are those of the run's recipe.
        raise type(error)([loaded.locate(problem) for problem in error.problems]) from None


def _margins(split: Split, rows: Ints, scorer: Scorer) -> Floats:
    """Return the margin of each row; NaN where the prompt fills max_length."""
    margins = []
    with progress("score", len(rows), "pairs") as count:
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK].tolist()
            token_rows = [ids for row in part for ids in _token_rows(split, row, scorer)]
            rewards = [numbers["reward"] for numbers in scorer.score(token_rows)]
            values = np.array([math.nan if one is None else one for one in rewards], np.float64)
            margins.append(values[::2] - values[1::2])
            count(len(part))
    return np.concatenate(margins) if margins else np.zeros(0)


def _token_rows(split: Split, index: int, scorer: Scorer) -> list[TokenRow]:
    """Return chosen and rejected of a pair as token ids."""
    row: dict[str, Any] = split.rows[index]
    if scorer.chat and isinstance(row["prompt"], str):
        raw, _ = prepare(row, chat=True)
        pairs = detect(raw)
        assert pairs is not None
        row = pairs.convert(raw)
    template = template_columns(row)
    pair = Candidates(row["prompt"], [row["chosen"], row["rejected"]], template)
    return pair.token_rows(scorer.tokenizer, split.place(index))
