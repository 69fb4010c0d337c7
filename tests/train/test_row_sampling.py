"""Row indices that are drawn with a seed or spread over the rows."""

from __future__ import annotations

import pytest

from prefcli.data.row_sampling import draw_share, draw_sorted, spread_indices, spread_order


def test_draw_sorted_is_a_seeded_subset_in_order():
    drawn = draw_sorted(range(100), 10, seed=1)
    assert drawn == sorted(set(drawn)) == draw_sorted(range(100), 10, seed=1)
    assert drawn != draw_sorted(range(100), 10, seed=2)
    assert draw_sorted(range(3), 5, seed=1) == [0, 1, 2]


def test_draw_share_returns_the_size_of_the_share():
    assert draw_share(4, 1.0, seed=1) == ([0, 1, 2, 3], 4)
    indices, size = draw_share(100, 0.5, seed=1, sample=7)
    assert (len(indices), size) == (7, 50)
    assert set(indices) <= set(draw_share(100, 0.5, seed=1)[0])
    assert draw_share(100, 1e-6, seed=1)[1] == 1


@pytest.mark.parametrize(
    ("rows", "count", "indices"),
    [(10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (5, 0, []), (0, 4, [])],
)
def test_spread_indices_are_even(rows, count, indices):
    assert spread_indices(rows, count) == indices


def test_spread_order_yields_every_row_once():
    assert list(spread_order(7, 3)) == [0, 2, 4, 1, 3, 5, 6]
    for rows in range(12):
        for parts in range(1, 12):
            assert sorted(spread_order(rows, parts)) == list(range(rows))
            assert [*spread_order(rows, parts)][: min(rows, parts)] == spread_indices(rows, parts)
    assert list(spread_order(5, 0)) == []
