"""Ranks of responses by reward, and the columns of a scored row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prefcli.evaluation.bootstrap import Floats, Ints
from prefcli.evaluation.candidates import Layout

_SIDES = ("chosen", "rejected")


def rank(rewards: Floats, groups: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return (rank within the group, whether it is the best of it) of each response.

    The highest reward has rank 1, and equal rewards have equal ranks; of several with rank 1, the
    first is the best. NaN has rank 0.
    """
    count = len(rewards)
    order = np.lexsort((np.arange(count), -rewards, groups))  # NaN last in its group
    values, keys = rewards[order], groups[order]
    starts = np.ones(count, np.bool_)
    starts[1:] = keys[1:] != keys[:-1]
    changes = starts.copy()
    changes[1:] |= values[1:] != values[:-1]
    at = np.arange(count)
    first_of_group = np.maximum.accumulate(np.where(starts, at, 0))
    first_equal = np.maximum.accumulate(np.where(changes, at, 0))
    sorted_ranks = np.where(np.isnan(values), 0, first_equal - first_of_group + 1)
    ranks, best = np.zeros(count, np.int64), np.zeros(count, np.bool_)
    ranks[order] = sorted_ranks
    best[order] = starts & ~np.isnan(values)
    return ranks, best


def score_columns(
    layout: Layout,
    names: Sequence[str],
    scores: Sequence[Mapping[str, Any]],
    ranks: Sequence[int],
    best: Sequence[bool],
) -> dict[str, Any]:
    """Return the columns that are added to a row.

    names: the numbers of a response. scores: these of each response of the row.
    """
    places = [place or None for place in ranks]
    if layout == "single":
        columns = {name: scores[0][name] for name in names}
        return {**columns, "rank": places[0], "best": bool(best[0])}
    if layout == "pair":
        columns = {}
        for side, one, place in zip(_SIDES, scores, places, strict=True):
            columns |= {f"{side}_{name}": one[name] for name in names}
            columns[f"{side}_rank"] = place
        return {**columns, "best": next((s for s, b in zip(_SIDES, best, strict=True) if b), None)}
    plural = {name: name if name == "tokens" else f"{name}s" for name in names}
    columns = {plural[name]: [one[name] for one in scores] for name in names}
    return {**columns, "ranks": places, "best": next((i for i, b in enumerate(best) if b), None)}
