"""Statistics of the lengths of rows."""

from __future__ import annotations

import numpy as np
import pytest

from prefcli.data.lengths import Lengths


def lengths(**tokens):
    return Lengths({name: np.array(counts) for name, counts in tokens.items()}, 20, 1)


def test_packed_counts_a_prompt_once_and_completions_up_to_the_cut():
    pairs = lengths(prompt=[5], chosen=[3], rejected=[40], row=[45])
    # 19 tokens are left for a row, 14 for a completion; one more token per row is the trainer's.
    assert pairs.packed(1, 1) == 5 + 3 + 14 + 1


@pytest.mark.parametrize(("batch", "largest"), [(1, 10), (4, 22), (9, 22)])
def test_packed_returns_the_largest_batch(batch, largest):
    texts = lengths(completion=[9, 2, 3, 4], row=[9, 2, 3, 4])
    assert texts.packed(batch, 2) == largest


def test_packed_lies_between_the_mean_and_the_longest_rows():
    draw = np.random.default_rng(1)
    counts = draw.integers(1, 19, 1000)
    texts = lengths(completion=counts, row=counts)
    rows = np.sort(counts + 1)
    assert 8 * rows.mean() < texts.packed(8, 3) < rows[-8:].sum()
