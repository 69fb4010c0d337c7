"""The eval sampler: every row once, and equally many batches on each process."""

from __future__ import annotations

import pytest

from prefcli.training.eval_sampler import EvalBatches


def batches_of(rows, size, processes):
    """List (indices by process, number of rows that count) of each batch."""
    by_process = [EvalBatches(rows, size, p, processes).batches for p in range(processes)]
    return [([batch.indices for batch in at], at[0].rows) for at in zip(*by_process, strict=True)]


def test_eval_batches_last_rows_are_split_or_shared():
    assert batches_of(17, 4, 2) == [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], 8),
        ([[8, 9, 10, 11], [12, 13, 14, 15]], 8),
        ([[16], [16]], 1),
    ]
    assert batches_of(6, 2, 2) == [([[0, 1], [2, 3]], 4), ([[4], [5]], 2)]
    assert batches_of(3, 2, 4) == [([[0, 1]] * 4, 2), ([[2]] * 4, 1)]


def test_eval_batches_of_one_process_are_the_usual_ones():
    assert batches_of(5, 2, 1) == [([[0, 1]], 2), ([[2, 3]], 2), ([[4]], 1)]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_eval_batches_score_every_row_once(processes):
    for rows in range(1, 40):
        batches = batches_of(rows, 3, processes)
        assert sum(count for _, count in batches) == rows
        scored = [
            index
            for at, count in batches
            for index in (at[0] if count == len(at[0]) else sum(at, []))  # noqa: RUF017
        ]
        assert scored == list(range(rows))
