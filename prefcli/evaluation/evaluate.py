"""An evaluation: models on held-out rows, with and without the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefcli.console import say, say_brief
from prefcli.errors import RecipeError
from prefcli.evaluation.bootstrap import (
    Bootstrap,
    Estimate,
    Floats,
    Gap,
    Ints,
    Mean,
    Ordered,
    Perplexity,
    Statistic,
    divide,
    interval,
)
from prefcli.evaluation.held_out_rows import HeldOutRows, load_held_out
from prefcli.evaluation.model_scores import ModelScores, RowScoring
from prefcli.evaluation.scored_models import ModelChoice, ScoredModels
from prefcli.methods import Method
from prefcli.model.loading import absolute_name
from prefcli.recipe import Recipe

SUM_ACCURACY, TOKEN_ACCURACY = "logps/accuracies", "logps/accuracies_per_token"
LENGTH = "length"
"""The grouping by which side of a pair has more tokens."""


Metrics = dict[str, Estimate]


@dataclass(frozen=True)
class GroupMetrics:
    """The metrics of some rows: a dict per model, and its differences from the first model."""

    rows: int
    prompts: int
    models: list[Metrics]
    differences: list[Metrics]
    """One entry for each model but the first."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `prefcli eval`."""

    rows: HeldOutRows
    method: Method
    beta: float
    reference: str | None
    models: list[str]
    total: GroupMetrics
    groups: dict[str, dict[str, GroupMetrics]]
    """By name of the grouping and by group."""
    reward_models: list[bool]
    """Whether each model is a reward model."""
    kl_rows: int
    unscored: int
    """Rows without a scored token in some model; they are not counted."""


def reward_factor(method: Method) -> float:
    """Return beta, or 1 for a method without a reference: the reward is the log-ratio in nats."""
    return method.reward_scale if method.needs_reference else 1.0


def evaluate(
    recipe: Recipe,
    method: Method,
    models: Sequence[str],
    *,
    data: str | None = None,
    columns: Sequence[str] = (),
    with_reference: bool = True,
) -> Evaluation:
    """Score held-out rows with each model, and estimate metrics. Raises RecipeError, DataError.

    models: hub ids, folders, runs. data, columns: see `load_held_out`.
    """
    scored_models = ScoredModels(recipe, with_reference=with_reference)
    choices = [scored_models.choose(name) for name in models]
    _refuse_repeated(choices)
    shared = scored_models.tokenizer(choices[0])
    rows = load_held_out(recipe, method, shared, data=data, columns=columns)
    say_brief(rows.split.brief_lines(), rows.split.lines())
    if data is not None and shared.chat_template and not rows.split.conversational:
        say(
            "eval: the rows are texts, and the tokenizer has a chat template; "
            "data.train.chat=true reads them as turns"
        )
    scores = RowScoring(scored_models, rows, shared, recipe.data.max_length).all(choices)
    return _estimated(rows, scores, method, scored_models)


def _refuse_repeated(choices: Sequence[ModelChoice]) -> None:
    folders = [absolute_name(choice.name) for choice in choices]
    for choice, folder in zip(choices, folders, strict=True):
        if folders.count(folder) > 1:
            raise RecipeError(
                f"the model {choice.name} is named twice",
                code="RCP033",
                place="MODEL",
                hint="name each model once",
            )


def _estimated(
    rows: HeldOutRows, scores: Sequence[ModelScores], method: Method, models: ScoredModels
) -> Evaluation:
    valid = np.logical_and.reduce([model.valid for model in scores])
    beta = reward_factor(method)
    statistics = [_statistics(rows, model, beta) for model in scores]
    parts: dict[str, dict[str, Ints]] = {
        name: _members(labels, valid) for name, labels in _groupings(rows, scores[0]).items()
    }
    total = np.flatnonzero(valid)
    members = [total, *(part for group in parts.values() for part in group.values())]
    bootstrap = Bootstrap(rows.prompts)
    flat = [statistic for some in statistics for statistic in some.values()]
    resampled = bootstrap.values(flat, members)
    kinds = [model.is_of_reward_model for model in scores]
    same_units = [kind == kinds[0] for kind in kinds]
    results = iter(
        [
            _group_metrics(bootstrap, statistics, values, part, same_units)
            for values, part in zip(resampled, members, strict=True)
        ]
    )
    compares = any(side.reference is not None for model in scores for side in model.sides.values())
    reference = models.reference.name_or_path if compares else None
    return Evaluation(
        rows=rows,
        method=method,
        beta=beta,
        reference=reference,
        models=[model.name for model in scores],
        total=next(results),
        groups={name: {label: next(results) for label in group} for name, group in parts.items()},
        reward_models=kinds,
        kl_rows=max((int((model.kl_tokens > 0).sum()) for model in scores), default=0),
        unscored=int((~valid).sum()),
    )


def _members(labels: Sequence[str], valid: Any) -> dict[str, Ints]:
    """Return the valid rows of each group, the largest group first."""
    names = np.array(labels, dtype=object)
    members = {label: np.flatnonzero((names == label) & valid) for label in dict.fromkeys(labels)}
    ordered = sorted(members.items(), key=lambda item: -len(item[1]))
    return {label: part for label, part in ordered if len(part)}


def _groupings(rows: HeldOutRows, scores: ModelScores) -> dict[str, list[str]]:
    groupings: dict[str, list[str]] = {}
    if "rejected" in scores.sides:
        chosen, rejected = (scores.sides[side].tokens for side in ("chosen", "rejected"))
        names = {1: "chosen longer", -1: "rejected longer", 0: "same length"}
        groupings[LENGTH] = [names[int(sign)] for sign in np.sign(chosen - rejected)]
    return groupings | rows.groups


def _statistics(rows: HeldOutRows, model: ModelScores, beta: float) -> dict[str, Statistic]:
    if rows.kind == "pair":
        return _pair_statistics(model, beta)
    return _single_statistics(model, rows.labels, beta, compares=rows.kind == "labelled")


def _pair_statistics(model: ModelScores, beta: float) -> dict[str, Statistic]:
    chosen, rejected = (model.sides[side] for side in ("chosen", "rejected"))
    ones = np.ones(len(chosen.logps))
    if chosen.rewards is not None and rejected.rewards is not None:
        return _reward_statistics(chosen.rewards, rejected.rewards)
    statistics: dict[str, Statistic] = {}
    if chosen.reference is not None and rejected.reference is not None:
        statistics = _reward_statistics(
            beta * (chosen.logps - chosen.reference),
            beta * (rejected.logps - rejected.reference),
        )
        statistics["reference_kl"] = Mean(model.kl_nats, model.kl_tokens)
    per_token = [divide(side.logps, side.tokens) for side in (chosen, rejected)]
    return statistics | {
        SUM_ACCURACY: Mean(_wins(chosen.logps, rejected.logps), ones, is_share=True),
        TOKEN_ACCURACY: Mean(_wins(*per_token), ones, is_share=True),
        "logps/chosen_per_token": Mean(chosen.logps, chosen.tokens),
        "logps/rejected_per_token": Mean(rejected.logps, rejected.tokens),
        "perplexity": Perplexity(Mean(chosen.logps, chosen.tokens)),
    }


def _reward_statistics(chosen: Floats, rejected: Floats) -> dict[str, Statistic]:
    """Return the statistics of the rewards of pairs."""
    ones = np.ones(len(chosen))
    return {
        "rewards/accuracies": Mean(_wins(chosen, rejected), ones, is_share=True),
        "rewards/margins": Mean(chosen - rejected, ones),
        "rewards/chosen": Mean(chosen, ones),
        "rewards/rejected": Mean(rejected, ones),
    }


def _single_statistics(
    model: ModelScores, labels: Any, beta: float, *, compares: bool
) -> dict[str, Statistic]:
    """Return the statistics of single responses. compares: some are labelled undesirable."""
    (side,) = model.sides.values()
    masks = labels.astype(np.float64), (~labels).astype(np.float64)
    logps = np.nan_to_num(side.logps)  # rows without tokens are not counted
    statistics: dict[str, Statistic] = {}
    rewards = side.rewards
    if side.reference is not None:
        rewards = beta * (logps - np.nan_to_num(side.reference))
    if rewards is not None:
        means = Mean(rewards * masks[0], masks[0]), Mean(rewards * masks[1], masks[1])
        if compares:
            statistics |= {
                "rewards/accuracies": Ordered(rewards, labels),
                "rewards/margins": Gap(*means),
            }
        statistics["rewards/chosen"] = means[0]
        if compares:
            statistics["rewards/rejected"] = means[1]
    if side.rewards is not None:
        return statistics
    if side.reference is not None:
        statistics["reference_kl"] = Mean(model.kl_nats, model.kl_tokens)
    if compares:
        statistics |= {
            SUM_ACCURACY: Ordered(logps, labels),
            TOKEN_ACCURACY: Ordered(np.nan_to_num(divide(logps, side.tokens)), labels),
        }
    chosen, rejected = (Mean(logps * mask, side.tokens * mask) for mask in masks)
    statistics["logps/chosen_per_token"] = chosen
    if compares:
        statistics["logps/rejected_per_token"] = rejected
    statistics["perplexity"] = Perplexity(chosen)
    return statistics


def _wins(chosen: Floats, rejected: Floats) -> Floats:
    """Return 1 where chosen is higher, and one half for a tie."""
    wins: Floats = (np.sign(chosen - rejected) + 1) / 2
    return wins


def _group_metrics(
    bootstrap: Bootstrap,
    statistics: Sequence[Mapping[str, Statistic]],
    values: Floats,
    rows: Ints,
    same_units: Sequence[bool],
) -> GroupMetrics:
    """Estimate the metrics of some rows.

    values: the resamples of all models' statistics. same_units: whether the rewards of each model
    have the units of the first one's.
    """
    left = iter(values)
    resampled = [{name: next(left) for name in some} for some in statistics]
    models = [
        {name: bootstrap.estimate(some[name], drawn[name], rows) for name in some}
        for some, drawn in zip(statistics, resampled, strict=True)
    ]
    prompts = bootstrap.prompts(rows)
    differences = [
        {
            name: _difference(
                metrics[name], models[0][name], drawn[name] - resampled[0][name], prompts
            )
            for name in metrics
            if name in models[0] and (comparable or "accuracies" in name)
        }
        for metrics, drawn, comparable in zip(
            models[1:], resampled[1:], same_units[1:], strict=True
        )
    ]
    return GroupMetrics(len(rows), prompts, models, differences)


def _difference(model: Estimate, first: Estimate, resampled: Floats, prompts: int) -> Estimate:
    if model.value is None or first.value is None:
        return Estimate(None, None, None)
    return interval(model.value - first.value, resampled, prompts)
