"""CPO and AlphaPO, by trl's CPO trainer."""

from __future__ import annotations

import pytest
import torch

from tests.support.formula_cases import mean, total
from tests.support.oracle import log_sigmoid

both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def nll(pairs, weight=1.0):
    """CPO's SFT term; in trl the mean over all chosen tokens of the device batch."""
    return -weight * torch.cat(pairs.chosen).mean()


def smoothed(margin, epsilon=0.0):
    return -((1 - epsilon) * log_sigmoid(margin) + epsilon * log_sigmoid(-margin)).mean()


@both
@pytest.mark.parametrize(("beta", "weight", "epsilon"), [(0.1, 1.0, 0.0), (0.3, 0.5, 0.2)])
def test_cpo_sigmoid_matches_the_formula(build, beta, weight, epsilon, lora):
    """CPO (Xu et al. 2024, arXiv:2401.08417, eq. 3): sums of log-probabilities and a NLL term;
    label smoothing as in cDPO."""
    section = {"beta": beta, "cpo_alpha": weight, "label_smoothing": epsilon}
    case = build("cpo", section, lora=lora)
    pairs = case.pairs(bos=True)
    margin = beta * (total(pairs.chosen) - total(pairs.rejected))
    case.agrees(smoothed(margin, epsilon) + nll(pairs, weight))


@both
def test_cpo_hinge_matches_the_formula(build, lora):
    """SLiC's hinge (arXiv:2305.10425) without a reference, plus CPO's NLL term."""
    case = build("cpo", {"loss_type": "hinge", "beta": 0.05}, lora=lora)
    pairs = case.pairs(bos=True)
    margin = 0.05 * (total(pairs.chosen) - total(pairs.rejected))
    case.agrees(torch.relu(1 - margin).mean() + nll(pairs))


@both
def test_cpo_ipo_matches_the_formula(build, lora):
    """IPO (arXiv:2310.12036, eq. 17) without a reference; trl takes means over tokens."""
    case = build("cpo", {"loss_type": "ipo", "beta": 0.5, "cpo_alpha": 0.0}, lora=lora)
    pairs = case.pairs(bos=True)
    case.agrees(((mean(pairs.chosen) - mean(pairs.rejected) - 1 / (2 * 0.5)) ** 2).mean())


@both
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 0.1), (-0.5, 1.0)])
def test_alphapo_matches_the_formula(build, alpha, gamma, lora):
    """AlphaPO (Gupta et al. 2025, arXiv:2501.03884): the reward (1 - p^-alpha) / alpha of the
    geometric mean p of a response's token probabilities, with SimPO's target margin."""
    section = {"loss_type": "alphapo", "alpha": alpha, "gamma": gamma}
    case = build("cpo", section, lora=lora)
    pairs = case.pairs(bos=True)
    chosen, rejected = (
        (1 - torch.exp(mean(side)) ** -alpha) / alpha for side in (pairs.chosen, pairs.rejected)
    )
    case.agrees(smoothed(2.5 * (chosen - rejected) - gamma))


def test_cpo_truncated_rows_match_the_formula(build):
    """CPO (arXiv:2401.08417, eq. 3) over the tokens that max_length keeps."""
    case = build("cpo", {}, max_length=10)
    pairs = case.pairs(bos=True)
    assert pairs.lengths != case.pairs(bos=True, max_length=64).lengths
    margin = 0.1 * (total(pairs.chosen) - total(pairs.rejected))
    case.agrees(smoothed(margin) + nll(pairs))
