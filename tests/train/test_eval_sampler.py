"""Each row once, and as many batches on each process, whatever divides what."""

from __future__ import annotations

import pytest

from prefcli.training.eval_sampler import EvalBatches


def of(rows, size, processes):
    """By batch: what each process scores, and how many rows that counts for."""
    each = [EvalBatches(rows, size, p, processes).batches for p in range(processes)]
    return [([batch.indices for batch in at], at[0].rows) for at in zip(*each, strict=True)]


def test_whole_rounds_a_smaller_one_and_what_all_share():
    assert of(17, 4, 2) == [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], 8),
        ([[8, 9, 10, 11], [12, 13, 14, 15]], 8),
        ([[16], [16]], 1),
    ]
    assert of(6, 2, 2) == [([[0, 1], [2, 3]], 4), ([[4], [5]], 2)]
    assert of(3, 2, 4) == [([[0, 1]] * 4, 2), ([[2]] * 4, 1)]


def test_one_process_has_the_usual_batches():
    assert of(5, 2, 1) == [([[0, 1]], 2), ([[2, 3]], 2), ([[4]], 1)]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_row_fingerprints_once(processes):
    for rows in range(1, 40):
        found = of(rows, 3, processes)
        assert sum(count for _, count in found) == rows
        scored = [
            index
            for at, count in found
            for index in (at[0] if count == len(at[0]) else sum(at, []))  # noqa: RUF017
        ]
        assert scored == list(range(rows))
