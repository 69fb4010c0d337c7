"""The audit of a split: every row is kept or dropped, and every finding is counted."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from prefcli.data.account import Account
from prefcli.data.findings import DROPS, REPEATED, Finding, Tally
from prefcli.data.lengths import Ints, Lengths
from prefcli.data.row_stats import Limits, RowStats
from prefcli.recipe.sections import DataChecks

Bools = npt.NDArray[np.bool_]

_NO_KEYS: Ints = np.zeros(0, np.int64)


@dataclass
class Audit:
    """The counts of a split, added source by source."""

    limits: Limits
    train_prompts: Ints | None = None
    """Keys of the prompts of data.train, if this split must not contain them."""
    account: Account = field(default_factory=Account)
    """The counts of the rows before they were tokenized."""
    cures: dict[str, str] = field(default_factory=dict)
    """What to do about a finding, where that depends on the rows or the template."""
    tokens: int = 0
    prompts: Ints = field(default_factory=lambda: _NO_KEYS)
    """Keys of the prompts of the remaining rows."""
    _dropped: dict[str, Tally] = field(default_factory=dict)
    _tallies: dict[str, Tally] = field(default_factory=dict)
    _remaining: Counter[str] = field(default_factory=Counter)
    """Rows of each finding that are not dropped."""
    _unrendered: Counter[str] = field(default_factory=Counter)
    _cut: Counter[str] = field(default_factory=Counter)
    _lengths: dict[str, list[Ints]] = field(default_factory=dict)
    _rows: Ints = field(default_factory=lambda: _NO_KEYS)
    _pairs: int = 0
    _pair_tokens: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> dict[str, Tally]:
        """All dropped rows by reason."""
        dropped = {reason: copy.deepcopy(rows) for reason, rows in self.account.dropped.items()}
        for reason, rows in self._dropped.items():
            dropped.setdefault(reason, Tally()).join(rows)
        return dropped

    def add(self, rows: Dataset, stats: RowStats) -> list[int]:
        """Count the rows of a source and return the indices of those to keep."""
        self._add_lengths(stats)
        reasons = np.array(stats.drop, dtype=object)
        keep = np.array([reason is None for reason in stats.drop], np.bool_)
        if self.limits.sampled_tokens:
            # Each prompt is answered several times in an epoch already.
            repeated = self._occurs_earlier(stats.row_key, stats.row_key, keep)
            reasons[repeated & keep] = REPEATED
            keep &= ~repeated
        masks = {name: mask & keep for name, mask in self._finding_masks(stats, keep).items()}
        self._remaining.update({name: int(mask.sum()) for name, mask in masks.items()})
        place = functools.partial(row_place, rows)
        for reason in dict.fromkeys(reasons[~keep].tolist()):
            dropped = reasons == reason
            self._dropped.setdefault(reason, Tally()).add_all(np.flatnonzero(dropped), place)
            if (name := DROPS[reason]) is not None:
                masks[name] = masks.get(name, dropped) | dropped
        for name, mask in masks.items():
            if mask.any():
                self._tallies.setdefault(name, Tally()).add_all(np.flatnonzero(mask), place)
        self.tokens += int(stats.tokens[keep].sum())
        self.prompts = np.union1d(self.prompts, stats.prompt_key[keep])
        return [int(at) for at in np.flatnonzero(keep)]

    def _finding_masks(self, stats: RowStats, keep: Bools) -> dict[str, Bools]:
        """Return a mask over the rows for each finding."""
        masks = dict(stats.faults)
        cut = {side: end > self.limits.room for side, end in stats.ends.items()}
        self._cut.update({side: int((mask & keep).sum()) for side, mask in cut.items()})
        not_rendered = np.array([missing is not None for missing in stats.unrendered], np.bool_)
        masks["not_rendered"] = not_rendered
        self._unrendered.update(
            part
            for missing, remains in zip(stats.unrendered, keep, strict=True)
            if missing is not None and remains
            for part in missing.split(", ")
        )
        masks["cut"] = np.logical_or.reduce(list(cut.values()))
        masks["contradictions"] = self._occurs_earlier(stats.opposite_key, stats.row_key, keep)
        masks["duplicates"] = self._occurs_earlier(stats.row_key, stats.row_key, keep)
        self._rows = np.union1d(self._rows, stats.row_key[keep])
        if self.train_prompts is not None:
            masks["shared_prompts"] = np.isin(stats.prompt_key, self.train_prompts)
        if "rejected" in stats.sides:
            masks["chosen_longer"] = stats.sides["chosen"] > stats.sides["rejected"]
            self._pairs += int(keep.sum())
            self._pair_tokens.update(
                {side: int(tokens[keep].sum()) for side, tokens in stats.sides.items()}
            )
        return masks

    def lengths(self) -> Lengths:
        """Return the lengths of all tokenized rows, including those that are too long to keep."""
        tokens = {name: np.concatenate(parts) for name, parts in self._lengths.items()}
        tokens["row"] = tokens.pop("row")  # last
        if not tokens["prompt"].any():
            tokens = {"row": tokens["row"]}  # no prompts: texts or conversations
        return Lengths(tokens, self.limits.max_length, self.limits.margin)

    def findings(self, total: int) -> list[Finding]:
        """Return the findings in the order of `data.checks`. total: rows read."""
        tallies = self.account.tallies()
        for name, rows in self._tallies.items():
            tallies.setdefault(name, Tally()).join(rows)
        remaining = self._remaining + Counter(
            {name: rows.count for name, rows in self.account.counted.items()}
        )
        remaining["unread"] = self.account.incomplete.count
        notes = self.account.details()
        if self._cut.total():
            enough = self.lengths().enough
            notes["cut"] = f"{_in_rows(self._cut)}; max_length {enough} cuts at most 1 %"
        if self._unrendered:
            notes["not_rendered"] = _in_rows(self._unrendered)
        for name in ("nothing_trained", "identical_tokens"):
            reasons = {r: rows.count for r, rows in self._dropped.items() if DROPS[r] == name}
            if reasons:
                notes[name] = _in_rows(reasons)
        if self._pairs:
            chosen, rejected = (self._pair_tokens[s] / self._pairs for s in ("chosen", "rejected"))
            notes["chosen_longer"] = f"on average {chosen:.1f} and {rejected:.1f} tokens"
        totals = {"chosen_longer": self._pairs}
        return [
            Finding(
                name,
                tallies[name].count,
                totals.get(name, total),
                tallies[name].first,
                remaining[name],
                notes.get(name, ""),
                self.account.unread_cure if name == "unread" else self.cures.get(name, ""),
            )
            for name in DataChecks.model_fields
            if name in tallies
        ]

    def _add_lengths(self, stats: RowStats) -> None:
        row = np.maximum.reduce(list(stats.ends.values()))
        for name, tokens in {"prompt": stats.prompt, **stats.sides, "row": row}.items():
            self._lengths.setdefault(name, []).append(tokens)

    def _occurs_earlier(self, sought_keys: Ints, keys: Ints, keep: Bools) -> Bools:
        """Mask the rows whose key in `sought_keys` is the key of an earlier remaining row."""
        earlier = np.isin(sought_keys, self._rows)
        at = np.flatnonzero(keep)
        if len(at):
            known, first = np.unique(keys[at], return_index=True)
            index = np.searchsorted(known, sought_keys).clip(max=len(known) - 1)
            is_known = known[index] == sought_keys
            earlier |= is_known & (at[first[index]] < np.arange(len(sought_keys)))
        return earlier


def _in_rows(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} in {count}" for name, count in counts.items())


def row_place(rows: Dataset, index: int) -> str:
    """Return the file and number of a row."""
    row = rows[index]
    return f"{row['_file']}: row {row['_row']}"
