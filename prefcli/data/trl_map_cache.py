"""trl's own preparation of rows, done once and found in the cache of datasets afterwards.

trl caches the steps of its preparation under a fingerprint of their functions. Some of these hold
the training arguments or the trainer itself, and with them the process number and the output
folder, so that the cache is never hit (huggingface/trl issue 7223). Here the fingerprint is made
from the rows, the step and the tokenizer. Also, trl lets the first process go first with a barrier,
which may time out in the others; a file lock replaces it.
"""

from __future__ import annotations

import copy
import functools
from contextlib import AbstractContextManager
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prefcli.data.arrow_cache import cache_folder
from prefcli.data.digests import json_digest
from prefcli.data.run_once import file_lock
from prefcli.data.split import Split
from prefcli.data.turn_masks import add_labels, with_generation_markers
from prefcli.formats.training_marks import MASKED_TURNS
from prefcli.methods import Method
from prefcli.trl_integration.trl_compat import preparation_serialized


class CachedMapDataset(Dataset):  # type: ignore[misc]  # datasets is untyped
    """Rows whose preparation steps are cached under `key` and the names of the steps."""

    key: str

    @classmethod
    def of(cls, rows: Dataset, key: str) -> CachedMapDataset:
        cached: CachedMapDataset = copy.copy(rows)
        cached.__class__ = cls
        cached.key = key
        return cached

    def map(self, function: Any = None, *args: Any, **kwargs: Any) -> Dataset:
        kwargs["new_fingerprint"] = kwargs.get("new_fingerprint") or self._after(function, kwargs)
        return CachedMapDataset.of(super().map(function, *args, **kwargs), self.key)

    def filter(self, function: Any = None, *args: Any, **kwargs: Any) -> Dataset:
        kwargs["new_fingerprint"] = kwargs.get("new_fingerprint") or self._after(function, kwargs)
        return CachedMapDataset.of(super().filter(function, *args, **kwargs), self.key)

    def _after(self, function: Any, options: dict[str, Any]) -> str:
        """Return the fingerprint of the result of a step."""
        step = getattr(function, "func", function)
        batching = {k: v for k, v in options.items() if k in ("batched", "batch_size")}
        arguments = {
            name: value if isinstance(value, (str, int, list, type(None))) else str(type(value))
            for name, value in (options.get("fn_kwargs") or {}).items()
        }
        return json_digest([self._fingerprint, self.key, step.__qualname__, batching, arguments])


def rows_for_trl(
    split: Split, method: Method, tokenizer: PreTrainedTokenizerBase, key: str
) -> CachedMapDataset:
    """Return the rows of a split as trl's trainer takes them.

    Rows with masked turns have labels, which trl's own preparation would make without the masks.
    """
    rows = CachedMapDataset.of(split.for_trl(), key)
    if MASKED_TURNS not in rows.column_names:
        return rows
    if method.assistant_only:
        tokenizer = with_generation_markers(tokenizer, "sft.assistant_only_loss")
    label = functools.partial(
        add_labels,
        tokenizer=tokenizer,
        assistant_only=method.assistant_only,
        trains_prompt=method.trains_prompt,
    )
    return CachedMapDataset.of(rows.map(label, batched=True, remove_columns=[MASKED_TURNS]), key)


def serialized(trl_class: type[Any], key: str) -> AbstractContextManager[None]:
    """Let one process at a time prepare the rows of a key."""
    lock = cache_folder() / "prepared" / f"{key}.lock"
    return preparation_serialized(trl_class, lambda: file_lock(lock, "tokens for trl"))
