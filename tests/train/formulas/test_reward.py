"""Reward modelling, by trl's reward trainer."""

from __future__ import annotations

import pytest
import torch

from tests.support.formula_cases import PAIRS
from tests.support.oracle import log_sigmoid

both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def rewards(case, side):
    rows = [case.oracle.ids(r["prompt"], r[side], max_length=case.max_length) for r in case.rows]
    return torch.stack([case.oracle.reward(*row) for row in rows])


@both
@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_reward_matches_the_formula(build, coefficient, lora):
    """Bradley-Terry (Ouyang et al. 2022, arXiv:2203.02155, eq. 1), and the mean squared sum of both
    rewards (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2). The reward of a text is that of its
    last token."""
    case = build("reward", {"center_rewards_coefficient": coefficient}, lora=lora)
    chosen, rejected = rewards(case, "chosen"), rewards(case, "rejected")
    centered = coefficient * ((chosen + rejected) ** 2).mean()
    case.agrees(centered - log_sigmoid(chosen - rejected).mean())


def test_reward_with_margins_matches_the_formula(build):
    """The reward margin must exceed that of the row (Touvron et al. 2023, arXiv:2307.09288,
    eq. 2)."""
    margins = [0.0, 1.0, 0.5, 2.0]
    rows = [{**row, "by": margin} for row, margin in zip(PAIRS, margins, strict=True)]
    case = build("reward", {"margin_column": "by"}, rows)
    difference = rewards(case, "chosen") - rewards(case, "rejected")
    case.agrees(-log_sigmoid(difference - torch.tensor(margins)).mean())
