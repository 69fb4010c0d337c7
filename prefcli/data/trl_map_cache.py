"""trl's own preparation of rows, done once and found in the cache of datasets afterwards.

trl caches the steps of its preparation under a fingerprint of their functions. Some of these hold
the training arguments or the trainer itself, and with them the process number and the output
folder, so that the cache is never hit (huggingface/trl issue 7223). Here the fingerprint is made
from the rows, the step and the tokenizer. Also, trl lets the first process go first with a barrier,
which may time out in the others; a file lock replaces it.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

from datasets import Dataset

from prefcli.data.arrow_cache import cache_folder
from prefcli.data.digests import json_digest
from prefcli.data.run_once import file_lock
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


def serialized(trl_class: type[Any], key: str) -> AbstractContextManager[None]:
    """Let one process at a time prepare the rows of a key."""
    lock = cache_folder() / "prepared" / f"{key}.lock"
    return preparation_serialized(trl_class, lambda: file_lock(lock, "tokens for trl"))
