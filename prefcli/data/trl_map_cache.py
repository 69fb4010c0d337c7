"""trl's own preparation of rows, done once: others, and later runs, find it in datasets' cache.

trl has the steps of its preparation cached under a fingerprint of the functions that do them. Some
of these hold the training arguments, or the trainer itself, and with them the number of the process
and the output folder: nobody ever finds such a step again (huggingface/trl issue 7223). Here the
fingerprint is made of what the rows, the step and the tokenizer are. And where trl lets the first
process go first by a barrier, whose time-out the others may run into, a lock on a file serves.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prefcli import __version__
from prefcli.data.arrow_cache import folder
from prefcli.data.cache_key import json_digest, tokenizer_digest
from prefcli.data.run_once import file_lock
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_compat import preparation_serialized


class CachedMapDataset(Dataset):  # type: ignore[misc]  # datasets is untyped
    """Rows whose steps of preparation are found again by `key` and their own names."""

    key: str

    @classmethod
    def of(cls, rows: Dataset, key: str) -> CachedMapDataset:
        shared: CachedMapDataset = copy.copy(rows)
        shared.__class__ = cls
        shared.key = key
        return shared

    def map(self, function: Any = None, *args: Any, **kwargs: Any) -> Dataset:
        kwargs["new_fingerprint"] = kwargs.get("new_fingerprint") or self._after(function, kwargs)
        return CachedMapDataset.of(super().map(function, *args, **kwargs), self.key)

    def filter(self, function: Any = None, *args: Any, **kwargs: Any) -> Dataset:
        kwargs["new_fingerprint"] = kwargs.get("new_fingerprint") or self._after(function, kwargs)
        return CachedMapDataset.of(super().filter(function, *args, **kwargs), self.key)

    def _after(self, function: Any, options: dict[str, Any]) -> str:
        """The fingerprint of the rows that come out of a step."""
        step = getattr(function, "func", function)
        plain = {k: v for k, v in options.items() if k in ("batched", "batch_size")}
        given = {
            name: value if isinstance(value, (str, int, list, type(None))) else str(type(value))
            for name, value in (options.get("fn_kwargs") or {}).items()
        }
        return json_digest([self._fingerprint, self.key, step.__qualname__, plain, given])


def trl_cache_key(recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what trl's preparation depends on beside the rows."""
    return json_digest(
        [
            __version__,
            method.name,
            tokenizer_digest(tokenizer),
            recipe.data.max_length,
            method.trains_prompt,
            method.assistant_only,
            method.packs,
            recipe.training.per_device_train_batch_size if method.pairs_neighbours else None,
        ]
    )


def serialized(trl_class: type[Any], key: str) -> AbstractContextManager[None]:
    """Inside, processes that prepare the same rows do so one after the other."""
    lock = folder() / "prepared" / f"{key}.lock"
    return preparation_serialized(trl_class, lambda: file_lock(lock, "trl's tokens"))
