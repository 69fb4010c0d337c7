"""Canonical rows in Arrow tables, with the columns and message keys that the rows need.

Messages of role and content alone are structs. Other messages are JSON, since a struct gives all
keys to every message, and chat templates see a key whose value is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, Json, Value
from datasets import List as ListOf
from datasets.table import InMemoryTable

from prefcli.data.arrow_cache import store_table
from prefcli.formats.base import MARGIN, Row
from prefcli.formats.training_marks import MASKED_TURNS

_CHUNK = 1000
_PLAIN = ListOf({"role": Value("string"), "content": Value("string")})
_WITH_KEYS = ListOf(Json())
_OPTIONAL = {
    "tools": Value("string"),
    "chat_template_kwargs": Json(),
    MARGIN: Value("float64"),
    MASKED_TURNS: ListOf(Value("int32")),
}
"""Columns that a row may lack."""


@dataclass
class CanonicalTables:
    """Collects canonical rows of one source."""

    rename: dict[str, str]
    """Name of a column in the tables: its name in the rows; other sides are dropped."""
    without: set[str]
    """Columns of the rows that are dropped."""
    _chunk: list[Row] = field(default_factory=list)
    _tables: list[pa.Table] = field(default_factory=list)
    _json: set[str] = field(default_factory=set)
    """Columns of messages with other keys than role and content."""
    _optional: set[str] = field(default_factory=set)
    """Those columns of _OPTIONAL that a row has."""

    def add(self, row: Row) -> None:
        """Add a row with the types of the first."""
        self._chunk.append(row)
        for name, value in row.items():
            if name in _OPTIONAL:
                self._optional.add(name)
            elif isinstance(value, list) and any(map(_has_other_keys, value)):
                self._json.add(name)
        if len(self._chunk) == _CHUNK:
            self._flush(row)

    def dataset(self, example: Row) -> Dataset:
        """Return all rows. example: a row, for the types if there are none."""
        self._flush(example)
        features = self._features(example)
        return store_table(pa.concat_tables([_widened(table, features) for table in self._tables]))

    def _flush(self, example: Row) -> None:
        features = self._features(example)
        names = {name: self.rename.get(name, name) for name in features}
        columns = {
            name: [row.get(original) for row in self._chunk] for name, original in names.items()
        }
        self._tables.append(_table(columns, features))
        self._chunk = []

    def _features(self, example: Row) -> Features:
        columns = [name for name in example if name not in (*_OPTIONAL, "_file", "_row")]
        if self.rename:
            columns = ["prompt", *self.rename]
        features = {
            name: self._feature(self.rename.get(name, name), example)
            for name in columns
            if name not in self.without
        }
        features |= {n: f for n, f in _OPTIONAL.items() if n in self._optional}
        return Features({**features, "_file": Value("string"), "_row": Value("int64")})

    def _feature(self, name: str, example: Row) -> Any:
        value = example[name]
        if isinstance(value, bool):
            return Value("bool")
        if isinstance(value, str):
            return Value("string")
        return _WITH_KEYS if name in self._json else _PLAIN


def unify(parts: Sequence[Dataset]) -> list[Dataset]:
    """Give rows of several sources the same features, as far as texts and messages allow."""
    features = dict(parts[0].features)
    for part in parts[1:]:
        for name, feature in part.features.items():
            if name in _OPTIONAL or (feature == _WITH_KEYS and features.get(name) == _PLAIN):
                features[name] = feature
    ordered = Features(
        {
            name: features[name]
            for name in (*(n for n in features if not n.startswith("_")), "_file", "_row")
        }
    )
    return [
        part
        if part.features == ordered or not _fits(part.features, ordered)
        else store_table(_table(part.to_dict(), ordered))
        for part in parts
    ]


def _has_other_keys(message: Mapping[str, Any]) -> bool:
    return len(message) > 2 or message["content"] is None


def _fits(features: Features, wider: Features) -> bool:
    return set(wider) - set(features) <= set(_OPTIONAL) and all(
        name in wider and (f == wider[name] or (f, wider[name]) == (_PLAIN, _WITH_KEYS))
        for name, f in features.items()
    )


def _widened(table: pa.Table, features: Features) -> pa.Table:
    if table.schema.equals(features.arrow_schema):
        return table
    return _table(Dataset(InMemoryTable(table)).to_dict(), features)


def _table(columns: dict[str, list[Any]], features: Features) -> pa.Table:
    rows = len(next(iter(columns.values())))
    values = {name: columns.get(name, [None] * rows) for name in features}
    if "chat_template_kwargs" in values:
        # trl unpacks the value, which must not be null.
        values["chat_template_kwargs"] = [v or {} for v in values["chat_template_kwargs"]]
    if any(feature in (_WITH_KEYS, Json()) for feature in features.values()):
        table: pa.Table = Dataset.from_dict(values, features=features).data.table
        return table
    return pa.Table.from_pydict(values, schema=features.arrow_schema)
