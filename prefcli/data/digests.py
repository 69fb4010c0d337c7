"""Content digests: the same content has the same digest on every rank and in every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import tokenizers
import transformers
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

_BATCH = 1000


def json_digest(value: Any) -> str:
    """Digest plain data: anything that json.dumps accepts."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def row_key(value: Any) -> int:
    """Digest a row, or a part of one, into a number that fits an int64 column."""
    text = json.dumps(value).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True)


def file_digest(path: Path) -> str:
    """Digest the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def folder_digest(path: Path) -> str:
    """Digest a file, or the names and bytes of all files under a folder."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest everything that decides which ids a text or a message becomes."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # State of the last call, not a property of the tokenizer.
        del rules["truncation"], rules["padding"]
    else:
        rules = sorted(tokenizer.get_vocab().items())
    return json_digest(
        (
            type(tokenizer).__name__,
            rules,
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
            {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, (bool, int))},
            (transformers.__version__, tokenizers.__version__, trl.__version__),
        )
    )


def rows_digest(rows: Dataset) -> str:
    """Digest the content and order of rows, whatever file, cache or index they are read through.

    The bytes of an Arrow file will not do: selecting rows through an index changes them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(_BATCH):
        for name in table.column_names:
            digest.update(name.encode())
            for part in _value_bytes(table[name].combine_chunks()):
                digest.update(part)
    return digest.hexdigest()


def _value_bytes(values: pa.Array) -> Iterator[bytes | memoryview]:
    """Yield lengths, then contents, level by level; a null has length -1."""
    if isinstance(values, pa.ExtensionArray):  # JSON
        yield from _value_bytes(values.storage)
    elif pa.types.is_struct(values.type):
        yield _number_bytes(values.is_valid())
        for field in values.flatten():
            yield from _value_bytes(field)
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield _number_bytes(pc.list_value_length(values).fill_null(-1))
        yield from _value_bytes(values.flatten())
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        yield _number_bytes(pc.binary_length(values).fill_null(-1))
        strings = values.fill_null("").cast(pa.large_string())
        _, offsets, text = strings.buffers()
        if text is not None:
            first = strings.offset
            ends = np.frombuffer(offsets, np.int64)[first : first + len(strings) + 1]
            yield memoryview(text)[ends[0] : ends[-1]]
    elif pa.types.is_null(values.type):
        yield str(len(values)).encode()
    else:
        yield _number_bytes(values.is_valid())
        yield _number_bytes(values.drop_null())


def _number_bytes(values: pa.Array) -> bytes:
    numbers: bytes = values.to_numpy(zero_copy_only=False).tobytes()
    return numbers
