"""Where each token of a batch goes, and that its label is scored by the state before it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefcli.packed_forward.packed_batch import Group, PackedBatch, layout_of
from tests.support.scored_rows import batch_of


def laid(rows, **how) -> tuple[dict, PackedBatch]:
    batch = batch_of(rows, **how)
    return batch, layout_of(**batch)


def test_a_pair_by_hand():
    """Prompt 3 4 5; one answer 6 7, the other 6 8 9: what they share is 3 4 5 6."""
    _, layout = laid([([3, 4, 5], [6, 7]), ([3, 4, 5], [6, 8, 9])])
    # packed: 3 4 5 6 | 7 | 8 9, out of rows of length 6
    assert layout.taken.tolist() == [0, 1, 2, 3, 4, 10, 11]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert layout.groups == (Group(0, 4, (1, 2)),)
    # 6 after 5, 7 after 6; 6 after 5 again, 8 after 6, 9 after 8
    assert layout.sources.tolist() == [2, 3, 2, 3, 5]
    # of rows of length 5: labels 6 7, then 6 8 9
    assert layout.scored.tolist() == [2, 3, 7, 8, 9]
    assert layout.longest == 6


def test_identical_rows_are_one():
    _, layout = laid([([3], [4, 5])] * 3)
    assert layout.groups == (Group(0, 3, (0, 0, 0)),)
    assert layout.sources.tolist() == [0, 1] * 3


def test_a_row_that_another_goes_on_from():
    _, layout = laid([([3], [4]), ([3], [4, 5, 6])])
    assert layout.groups == (Group(0, 2, (0, 2)),)
    assert layout.sources.tolist() == [0, 0, 1, 2]


def test_rows_that_share_nothing_stand_alone():
    _, layout = laid([([3, 4], [5]), ([6, 4], [5])])
    assert layout.groups == (Group(0, 0, (3,)), Group(3, 0, (3,)))


def test_a_shared_system_prompt_does_not_part_a_pair():
    """Four rows begin 9 9; the pairs share 9 9 1 1 1 1 and 9 9 2 2 2 2."""
    first, second = [9, 9, 11, 11, 11, 11], [9, 9, 12, 12, 12, 12]
    _, layout = laid([(first, [3]), (second, [4]), (first, [5]), (second, [6])])
    assert layout.groups == (Group(0, 6, (1, 1)), Group(8, 6, (1, 1)))


def test_answers_to_one_prompt_share_it():
    _, layout = laid([([9, 8, 7], [3, 4]), ([9, 8, 7], [5]), ([9, 8, 7], [6, 6, 6])])
    assert layout.groups == (Group(0, 3, (2, 1, 3)),)


def test_padding_on_the_left_changes_where_tokens_are_taken_from_and_nothing_else():
    rows = [([3, 4, 5], [6, 7]), ([3, 4, 5], [8])]
    (_, right), (_, left) = laid(rows), laid(rows, left=True)
    assert left.positions.tolist() == right.positions.tolist()
    assert left.sources.tolist() == right.sources.tolist()
    assert left.groups == right.groups
    assert left.taken.tolist() == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("rows", [[([3, 4], [])], [([3, 4], []), ([3, 5], [])]])
def test_without_labels_nothing_is_scored(rows):
    _, layout = laid(rows)
    assert len(layout.sources) == len(layout.scored) == 0
    assert layout.size == len({tuple(b[:1]) for b, _ in rows}) + len(rows)


ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 2), min_size=1, max_size=6), st.lists(st.integers(1, 2), max_size=4)
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.booleans())
@example([([1, 1], []), ([1], [1, 2]), ([1, 1, 2], [1])], True)
@settings(max_examples=150, deadline=None)
def test_every_token_is_where_it_should_be(rows, left):
    batch, layout = laid(rows, left=left)
    ids = batch["input_ids"]
    packed = ids.flatten()[layout.taken]
    texts = [before + after for before, after in rows]
    whole: list[list[int]] = []
    seen: list[list[int]] = [[]] * layout.size  # by each packed token: the row up to it
    end = 0
    for group in layout.groups:
        assert group.start == end
        shared = list(range(group.start, group.start + group.prefix))
        end = group.start + group.prefix
        for tokens in group.branches:
            row = [*shared, *range(end, end + tokens)]
            end += tokens
            text = packed[row].tolist()
            for at, index in enumerate(row):
                assert layout.positions[index] == at
                seen[index] = text[: at + 1]
            whole.append(text)
        assert end == group.end
    assert end == layout.size <= sum(map(len, texts))
    assert sorted(whole) == sorted(texts)
    assert layout.longest == max(map(len, texts))
    before = [
        text[:at]
        for (b, _), text in zip(rows, texts, strict=True)
        for at in range(max(len(b), 1), len(text))
    ]
    assert [seen[index] for index in layout.sources] == before
    wanted = batch["labels"][:, 1:] != -100
    assert layout.scored.tolist() == wanted.flatten().nonzero().flatten().tolist()
