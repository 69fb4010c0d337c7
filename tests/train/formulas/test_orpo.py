"""ORPO: an SFT loss and a log odds ratio, without a reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.formula_cases import mean
from tests.support.oracle import log_sigmoid

both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def expected(case, weight):
    pairs = case.pairs(bos=True)
    texts = [
        case.oracle.ids(row["prompt"], row["chosen"], max_length=case.max_length, bos=True)
        for row in case.rows
    ]
    scores = [case.oracle.policy(p[:1], [*p[1:], *c]) for p, c in texts]
    p_w, p_l = torch.exp(mean(pairs.chosen)), torch.exp(mean(pairs.rejected))
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -torch.cat(scores).mean() - weight * log_sigmoid(torch.log(odds_ratio)).mean()


@both
@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_orpo_matches_the_formula(build, weight, lora):
    """ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7, with the odds of eq. 4 and p of
    eq. 3, the geometric mean over the tokens of the answer).

    trl's SFT term covers the prompt too, all tokens behind the BOS, as the authors' code does,
    and is the mean over all chosen texts of the device batch, where long ones weigh more.
    """
    case = build("orpo", {"lambda": weight}, lora=lora)
    case.agrees(expected(case, weight))


def test_orpo_truncated_rows_match_the_formula(build):
    """ORPO (arXiv:2403.07691, eq. 6) over what max_length leaves, the BOS counted."""
    case = build("orpo", {"lambda": 0.5}, max_length=10)
    assert case.pairs(bos=True).lengths != case.pairs(bos=True, max_length=64).lengths
    case.agrees(expected(case, 0.5))
