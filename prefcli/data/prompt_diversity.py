"""Near-duplicate prompts by MinHash over token n-grams, and how diverse the prompts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from prefcli.data.digests import row_key
from prefcli.data.findings import Tally, percent
from prefcli.data.lengths import Ints
from prefcli.data.row_sampling import spread_indices
from prefcli.data.row_stats import prompt_of
from prefcli.data.split import Split
from prefcli.text import counted

_NGRAM = 3
_SIMILARITY = 0.7
"""Jaccard similarity of the n-grams from which prompts are near-duplicates."""
_BANDS, _HASHES_OF_BAND = 32, 4
"""Prompts of that similarity have an equal band with a probability of 0.9998."""
_SEED = 0
_SAMPLE = 1000
"""Prompts from which the wording of a template, openings and diversity are measured."""
_FEWEST = 20
"""Prompts below which the n-grams that most of them have are not a template."""
_OPENING = 4
"""Words of an opening."""
_BATCH = 1000

Hashes = npt.NDArray[np.uint64]
_FACTOR, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@dataclass(frozen=True)
class PromptDiversity:
    """The prompts of a split: how many differ, and how much."""

    rows: int
    prompts: int
    """Different prompts."""
    near_duplicates: Ints
    """Rows that have nearly the prompt of an earlier row, but not the same."""
    first: Tally
    """Their number, and the places of the first ones."""
    distinct_ngrams: float
    """Share of distinct n-grams among those of at most 1,000 prompts."""
    opening: str
    """The most common first words."""
    opening_share: float

    def lines(self) -> list[str]:
        """Describe the prompts."""
        places = f" (first: {self.first.rows})" if self.first.count else ""
        return [
            f"{self.prompts:,} different prompts in {counted(self.rows, 'row')}; "
            f"{counted(self.first.count, 'row')} ({percent(self.first.count / self.rows)}) with "
            f"nearly the prompt of an earlier row{places}",
            f"{percent(self.distinct_ngrams)} of the {_NGRAM}-grams in prompts are distinct; "
            f"{percent(self.opening_share)} of the prompts begin with {self.opening!r}",
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "prompts": self.prompts,
            "near_duplicates": self.first.count,
            "first_near_duplicates": self.first.first,
            "distinct_ngrams": self.distinct_ngrams,
            "opening": self.opening,
            "opening_share": self.opening_share,
        }


def measure_diversity(split: Split, tokenizer: PreTrainedTokenizerBase) -> PromptDiversity:
    """Compare the prompts of a split, in a time that grows with their tokens only."""
    keys = [row_key(prompt) for prompt in _prompts(split, np.arange(len(split.rows)))]
    _, firsts, prompt_of_row = np.unique(keys, return_index=True, return_inverse=True)
    order = np.sort(firsts)
    texts = _texts(split, order[spread_indices(len(order), _SAMPLE)])
    ngrams, owners = _ngrams(texts, tokenizer)
    template = _in_most(ngrams, owners)
    signatures = [
        _signatures(_texts(split, order[start : start + _BATCH]), tokenizer, template)
        for start in range(0, len(order), _BATCH)
    ]
    repeated = order[_near_duplicates(np.concatenate(signatures))]
    rows = np.flatnonzero(np.isin(firsts[prompt_of_row], repeated))
    tally = Tally()
    tally.add_all(rows, split.place)
    openings = Counter(" ".join(text.split()[:_OPENING]) for text in texts)
    ((opening, count),) = openings.most_common(1)
    return PromptDiversity(
        rows=len(keys),
        prompts=len(order),
        near_duplicates=rows,
        first=tally,
        distinct_ngrams=len(np.unique(ngrams)) / len(ngrams),
        opening=opening,
        opening_share=count / len(texts),
    )


def _prompts(split: Split, rows: Ints) -> Iterator[Any]:
    names = [name for name in ("prompt", "messages", "text") if name in split.rows.column_names]
    columns = split.rows.select_columns(names)
    for start in range(0, len(rows), _BATCH):
        batch = columns[rows[start : start + _BATCH]]
        for values in zip(*batch.values(), strict=True):
            yield prompt_of(dict(zip(batch, values, strict=True)))


def _texts(split: Split, rows: Ints) -> list[str]:
    return [_text(prompt) for prompt in _prompts(split, rows)]


def _text(prompt: Any) -> str:
    """Return a prompt as text; system turns are often the same in all rows."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] or "" for turn in prompt if turn["role"] != "system")


def _ngrams(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[Hashes, Ints]:
    """Return a hash of each n-gram, and the index of its text. Each text has one at least."""
    batch = tokenizer(text=list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    ids = [[*tokens, *[-1] * (_NGRAM - len(tokens))] for tokens in batch]
    tokens = np.array(list(chain.from_iterable(ids)), np.int64).astype(np.uint64)
    owners = np.repeat(np.arange(len(ids)), list(map(len, ids)))
    count = len(tokens) - _NGRAM + 1
    hashes = np.zeros(count, np.uint64)
    for at in range(_NGRAM):
        hashes = (hashes ^ tokens[at : at + count]) * _FACTOR
        hashes ^= hashes >> _HALF
    inside = owners[:count] == owners[_NGRAM - 1 :]
    return hashes[inside], owners[:count][inside]


def _in_most(ngrams: Hashes, owners: Ints) -> Hashes:
    """Return the n-grams that more than half of the texts have: the wording of a template."""
    texts = len(np.unique(owners))
    if texts < _FEWEST:
        return np.zeros(0, np.uint64)
    order = np.lexsort((owners, ngrams))
    sorted_ngrams, sorted_owners = ngrams[order], owners[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(sorted_ngrams) != 0) | (np.diff(sorted_owners) != 0)
    values, counts = np.unique(sorted_ngrams[is_new], return_counts=True)
    return values[counts > texts / 2]


def _signatures(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: Hashes
) -> Hashes:
    """Return (texts, hashes): the least value of each hash function over the n-grams."""
    ngrams, owners = _ngrams(texts, tokenizer)
    own = ~np.isin(ngrams, template)
    own |= np.bincount(owners, own, len(texts))[owners] == 0  # nothing but the template
    ngrams, owners = ngrams[own], owners[own]
    starts = np.searchsorted(owners, np.arange(len(texts)))
    draw = np.random.default_rng(_SEED)
    factors, offsets = draw.integers(0, 2**64, (2, _BANDS * _HASHES_OF_BAND), np.uint64)
    least = [
        np.minimum.reduceat((ngrams * (factor | np.uint64(1)) + offset) >> _HALF, starts)
        for factor, offset in zip(factors, offsets, strict=True)
    ]
    return np.stack(least, axis=1)


def _near_duplicates(signatures: Hashes) -> Ints:
    """Return the texts that are similar to an earlier one, in their order.

    Each is compared with the first text that has the same values in a band of the signature.
    """
    similar = np.zeros(len(signatures), np.bool_)
    for at in range(0, signatures.shape[1], _HASHES_OF_BAND):
        band = _mixed(signatures[:, at : at + _HASHES_OF_BAND])
        _, first, group = np.unique(band, return_index=True, return_inverse=True)
        candidates = np.flatnonzero(first[group] != np.arange(len(band)))
        equal = signatures[candidates] == signatures[first[group[candidates]]]
        similar[candidates[equal.mean(axis=1) >= _SIMILARITY]] = True
    return np.flatnonzero(similar)


def _mixed(columns: Hashes) -> Hashes:
    """Return one hash for each row of numbers."""
    hashes = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        hashes = (hashes ^ column) * _FACTOR
        hashes ^= hashes >> _HALF
    return hashes
