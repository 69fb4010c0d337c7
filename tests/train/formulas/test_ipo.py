"""IPO, as its own method and among dpo's losses."""

from __future__ import annotations

import pytest

from tests.support.formula_cases import mean

BETA = 0.3
both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def expected(pairs, beta):
    w = mean(pairs.chosen) - mean(pairs.chosen_reference)
    l_ = mean(pairs.rejected) - mean(pairs.rejected_reference)
    return ((w - l_ - 1 / (2 * beta)) ** 2).mean()


@both
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_ipo_matches_the_formula(build, beta, lora):
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), beta in the place of tau.

    The paper's h is of whole answers; trl divides each side's log-ratio by its tokens, so the
    target 1/(2 beta) is of nats per token.
    """
    case = build("ipo", {"beta": beta}, lora=lora)
    case.agrees(expected(case.pairs(), beta))


def test_ipo_as_a_dpo_loss_equals_the_method(build):
    """The same (arXiv:2310.12036, eq. 17) by dpo.loss_type."""
    case = build("dpo", {"beta": BETA, "loss_type": "ipo"})
    case.agrees(expected(case.pairs(), BETA))


def test_ipo_truncated_rows_match_the_formula(build):
    """IPO (arXiv:2310.12036, eq. 17): the mean is over the tokens that are left."""
    case = build("ipo", {"beta": BETA}, max_length=10)
    pairs = case.pairs()
    assert pairs.lengths != case.pairs(max_length=64).lengths
    case.agrees(expected(pairs, BETA))
