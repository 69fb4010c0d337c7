"""Each architecture that the fast forward is used for, and those that it must not be used for."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from prefcli.errors import RecipeError
from prefcli.recipe.performance import Performance
from prefcli.speed.seam import Speed
from prefcli.speed.support import FAMILIES
from tests.train.scored import OWN, assert_alike, batch_of, both, pairs, tiny


def test_every_setting_here_is_of_a_family():
    assert OWN.keys() <= FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_scores_as_trl_does(family):
    stock, fast, counts = both(tiny(family), batch_of(pairs()))
    assert_alike(stock, fast)
    assert (counts.fast, counts.stock) == (1, 0)
    # 32 + 5, 10 + 15, 12, 13, 19 instead of eight rows of 32
    assert (counts.packed, counts.padded) == (106, 256)
