"""The account of a split: every row that was read is kept or dropped, and what is found is told."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from prefcli.data.findings import DROPS, Finding, Tally
from prefcli.data.lengths import Ints, Lengths
from prefcli.data.row_stats import Limits, RowStats
from prefcli.recipe.sections import DataChecks

Bools = npt.NDArray[np.bool_]

_NONE: Ints = np.zeros(0, np.int64)


@dataclass
class Audit:
    """Filled in source by source."""

    limits: Limits
    train_prompts: Ints | None = None
    """Keys of the prompts in data.train, where this split must not hold them."""
    dropped: dict[str, Tally] = field(default_factory=dict)
    tokens: int = 0
    prompts: Ints = field(default_factory=lambda: _NONE)
    """Keys of the kept rows' prompts."""
    _found: dict[str, Tally] = field(default_factory=dict)
    _kept: Counter[str] = field(default_factory=Counter)
    """Rows of each finding that are kept."""
    _cut: Counter[str] = field(default_factory=Counter)
    _lengths: dict[str, list[Ints]] = field(default_factory=dict)
    _rows: Ints = field(default_factory=lambda: _NONE)
    _pairs: int = 0
    _pair_tokens: Counter[str] = field(default_factory=Counter)

    def drop(self, why: str, place: str) -> None:
        """A row that is left out before it is tokenised."""
        self.dropped.setdefault(why, Tally()).add(lambda: place)
        if (name := DROPS[why]) is not None:
            self._found.setdefault(name, Tally()).add(lambda: place)

    def enter(self, rows: Dataset, measures: RowStats) -> list[int]:
        """Count the rows of a source; the indices of those that are kept."""
        self._measure_lengths(measures)
        keep = np.array([why is None for why in measures.drop], np.bool_)
        found = {name: at & keep for name, at in self._look(measures, keep).items()}
        self._kept.update({name: int(at.sum()) for name, at in found.items()})
        place = functools.partial(row_place, rows)
        whys = np.array(measures.drop, dtype=object)
        for why in dict.fromkeys(whys[~keep].tolist()):
            lost = whys == why
            self.dropped.setdefault(why, Tally()).add_all(np.flatnonzero(lost), place)
            if (name := DROPS[why]) is not None:
                found[name] = found.get(name, lost) | lost
        for name, at in found.items():
            if at.any():
                self._found.setdefault(name, Tally()).add_all(np.flatnonzero(at), place)
        self.tokens += int(measures.tokens[keep].sum())
        self.prompts = np.union1d(self.prompts, measures.prompt_key[keep])
        return [int(at) for at in np.flatnonzero(keep)]

    def _look(self, measures: RowStats, keep: Bools) -> dict[str, Bools]:
        """Where each finding is true."""
        found = dict(measures.faults)
        cut = {side: end > self.limits.room for side, end in measures.ends.items()}
        self._cut.update({side: int((at & keep).sum()) for side, at in cut.items()})
        found["cut"] = np.logical_or.reduce(list(cut.values()))
        found["contradictions"] = self._stands_before(measures.opposite_key, measures.row_key, keep)
        found["duplicates"] = self._stands_before(measures.row_key, measures.row_key, keep)
        self._rows = np.union1d(self._rows, measures.row_key[keep])
        if self.train_prompts is not None:
            found["shared_prompts"] = np.isin(measures.prompt_key, self.train_prompts)
        if "rejected" in measures.sides:
            found["chosen_longer"] = measures.sides["chosen"] > measures.sides["rejected"]
            self._pairs += int(keep.sum())
            self._pair_tokens.update(
                {side: int(tokens[keep].sum()) for side, tokens in measures.sides.items()}
            )
        return found

    def lengths(self) -> Lengths:
        """Of all rows that were tokenised, also of those that are too long to be kept."""
        tokens = {name: np.concatenate(parts) for name, parts in self._lengths.items()}
        tokens["row"] = tokens.pop("row")  # last
        if not tokens["prompt"].any():
            tokens = {"row": tokens["row"]}  # whole texts
        return Lengths(tokens, self.limits.max_length, self.limits.prompt_margin)

    def findings(self, read: int) -> list[Finding]:
        """read: rows of the split, kept or not."""
        notes = {}
        if self._cut.total():
            sides = ", ".join(f"{side} in {count}" for side, count in self._cut.items())
            notes["cut"] = f"{sides}; max_length {self.lengths().enough} keeps 99 % whole"
        if self._pairs:
            chosen, rejected = (self._pair_tokens[s] / self._pairs for s in ("chosen", "rejected"))
            notes["chosen_longer"] = f"on average {chosen:.1f} and {rejected:.1f} tokens"
        totals = {"chosen_longer": self._pairs}
        return [
            Finding(
                name,
                self._found[name].count,
                totals.get(name, read),
                self._found[name].first,
                self._kept[name],
                notes.get(name, ""),
            )
            for name in DataChecks.model_fields
            if name in self._found
        ]

    def _measure_lengths(self, measures: RowStats) -> None:
        row = np.maximum.reduce(list(measures.ends.values()))
        for name, tokens in {"prompt": measures.prompt, **measures.sides, "row": row}.items():
            self._lengths.setdefault(name, []).append(tokens)

    def _stands_before(self, wanted: Ints, keys: Ints, kept: Bools) -> Bools:
        """Where the key that a row wants is that of a kept row before it, in any source."""
        found = np.isin(wanted, self._rows)
        at = np.flatnonzero(kept)
        if len(at):
            known, first = np.unique(keys[at], return_index=True)
            place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            there = (known[place] == wanted) & (at[first[place]] < np.arange(len(wanted)))
            found |= there
        return found


def row_place(rows: Dataset, index: int) -> str:
    """File and row number."""
    row = rows[index]
    return f"{row['_file']}: row {row['_row']}"
