"""The layout of a packed batch: positions of the tokens, and the state that scores each label."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefcli.packed_forward.packed_batch import Group, PackedBatch, layout_of
from tests.support.scored_rows import batch_of


def lay_out(rows, **options) -> tuple[dict, PackedBatch]:
    batch = batch_of(rows, **options)
    return batch, layout_of(**batch)


def test_layout_of_a_pair_matches_a_hand_computed_one():
    """Check prompt 3 4 5 with the answers 6 7 and 6 8 9, which share 3 4 5 6."""
    _, layout = lay_out([([3, 4, 5], [6, 7]), ([3, 4, 5], [6, 8, 9])])
    # packed: 3 4 5 6 | 7 | 8 9, out of rows of length 6
    assert layout.token_indices.tolist() == [0, 1, 2, 3, 4, 10, 11]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert layout.groups == (Group(0, 4, (1, 2)),)
    # 6 after 5, 7 after 6; 6 after 5 again, 8 after 6, 9 after 8
    assert layout.sources.tolist() == [2, 3, 2, 3, 5]
    # of rows of length 5: labels 6 7, then 6 8 9
    assert layout.scored.tolist() == [2, 3, 7, 8, 9]
    assert layout.longest == 6


def test_layout_of_identical_rows_stores_them_once():
    _, layout = lay_out([([3], [4, 5])] * 3)
    assert layout.groups == (Group(0, 3, (0, 0, 0)),)
    assert layout.sources.tolist() == [0, 1] * 3


def test_layout_of_a_row_that_continues_another_shares_it():
    _, layout = lay_out([([3], [4]), ([3], [4, 5, 6])])
    assert layout.groups == (Group(0, 2, (0, 2)),)
    assert layout.sources.tolist() == [0, 0, 1, 2]


def test_layout_of_rows_without_a_common_prefix_has_one_group_each():
    _, layout = lay_out([([3, 4], [5]), ([6, 4], [5])])
    assert layout.groups == (Group(0, 0, (3,)), Group(3, 0, (3,)))


def test_layout_with_a_shared_system_prompt_groups_the_pairs():
    """Check four rows that begin with 9 9, as two pairs with longer shared prefixes."""
    first, second = [9, 9, 11, 11, 11, 11], [9, 9, 12, 12, 12, 12]
    _, layout = lay_out([(first, [3]), (second, [4]), (first, [5]), (second, [6])])
    assert layout.groups == (Group(0, 6, (1, 1)), Group(8, 6, (1, 1)))


def test_layout_of_answers_to_one_prompt_shares_it():
    _, layout = lay_out([([9, 8, 7], [3, 4]), ([9, 8, 7], [5]), ([9, 8, 7], [6, 6, 6])])
    assert layout.groups == (Group(0, 3, (2, 1, 3)),)


def test_layout_with_left_padding_differs_only_in_its_indices():
    rows = [([3, 4, 5], [6, 7]), ([3, 4, 5], [8])]
    (_, right), (_, left) = lay_out(rows), lay_out(rows, left=True)
    assert left.positions.tolist() == right.positions.tolist()
    assert left.sources.tolist() == right.sources.tolist()
    assert left.groups == right.groups
    assert left.token_indices.tolist() == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("rows", [[([3, 4], [])], [([3, 4], []), ([3, 5], [])]])
def test_layout_without_labels_scores_nothing(rows):
    _, layout = lay_out(rows)
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
def test_layout_of_any_rows_restores_every_token(rows, left):
    batch, layout = lay_out(rows, left=left)
    ids = batch["input_ids"]
    packed = ids.flatten()[layout.token_indices]
    texts = [before + after for before, after in rows]
    rows_rebuilt: list[list[int]] = []
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
            rows_rebuilt.append(text)
        assert end == group.end
    assert end == layout.size <= sum(map(len, texts))
    assert sorted(rows_rebuilt) == sorted(texts)
    assert layout.longest == max(map(len, texts))
    before = [
        text[:at]
        for (b, _), text in zip(rows, texts, strict=True)
        for at in range(max(len(b), 1), len(text))
    ]
    assert [seen[index] for index in layout.sources] == before
    has_label = batch["labels"][:, 1:] != -100
    assert layout.scored.tolist() == has_label.flatten().nonzero().flatten().tolist()
