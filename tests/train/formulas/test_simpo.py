"""SimPO, by trl's CPO trainer."""

from __future__ import annotations

import pytest
import torch

from tests.support.formula_cases import mean
from tests.support.oracle import log_sigmoid

both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def expected(pairs, beta, gamma, alpha=0.0):
    margin = beta * mean(pairs.chosen) - beta * mean(pairs.rejected) - gamma
    return -log_sigmoid(margin).mean() - alpha * torch.cat(pairs.chosen).mean()


@both
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (10.0, 3.0), (2.5, 0.0)])
def test_simpo_matches_the_formula(build, beta, gamma, lora):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6): beta scales the mean log-probability
    of an answer's tokens, and gamma is not scaled by it."""
    case = build("simpo", {"beta": beta, "gamma": gamma}, lora=lora)
    case.agrees(expected(case.pairs(bos=True), beta, gamma))


@both
def test_simpo_with_sft_term_matches_the_formula(build, lora):
    """SimPO (arXiv:2405.14734, eq. 6) with CPO's NLL on the chosen side (Xu et al. 2024,
    arXiv:2401.08417, sec. 3), in trl the mean over all chosen tokens of the device batch,
    without the prompts."""
    case = build("simpo", {"beta": 2.0, "gamma": 1.0, "cpo_alpha": 0.3}, lora=lora)
    case.agrees(expected(case.pairs(bos=True), 2.0, 1.0, 0.3))


def test_simpo_truncated_rows_match_the_formula(build):
    """SimPO (arXiv:2405.14734, eq. 6): the mean is over the tokens that are left."""
    case = build("simpo", {"beta": 2.0, "gamma": 1.0, "cpo_alpha": 0.3}, max_length=10)
    pairs = case.pairs(bos=True)
    assert pairs.lengths != case.pairs(bos=True, max_length=64).lengths
    case.agrees(expected(pairs, 2.0, 1.0, 0.3))
