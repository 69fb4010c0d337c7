"""The rows of a run, read and measured once: by one process of a node, and for all later starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
import trl
from transformers import PreTrainedTokenizerBase

from prefcli import __version__
from prefcli.data import Split
from prefcli.data.arrow_cache import folder
from prefcli.data.run_once import once
from prefcli.data.sources import read
from prefcli.data.split_cache import load_splits, save_splits
from prefcli.errors import PrefcliError
from prefcli.methods import Method
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import SftMix, Source

_FORMAT = 1

Splits = dict[str, Split]
"""train, eval and sft_mix, as far as there are any."""


def cached_splits(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    mix: SftMix | None,
    ends: Sequence[int],
    make: Callable[[], Splits],
) -> tuple[Splits, Path | None, bool]:
    """(splits, where they are kept, were they there before?); nowhere if that can't be written.

    make: reads and measures them. Raises as it does.
    """
    key = _key(recipe, method, tokenizer, mix, ends)
    if key is None:
        return make(), None, False
    path = folder() / "prepared" / f"{key}.json"
    before = True

    def made() -> Splits:
        nonlocal before
        before = False
        splits = make()
        try:
            save_splits(splits, path)
        except OSError:
            return splits
        kept = load_splits(path)
        assert kept is not None, f"{path} can't be read back"
        return kept

    splits = once(path, "data", lambda: load_splits(path), made)
    return splits, path if path.exists() else None, before


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which ids a text or a message becomes."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for, not what the tokenizer is.
        del rules["truncation"], rules["padding"]
    else:
        rules = sorted(tokenizer.get_vocab().items())
    facts = (
        type(tokenizer).__name__,
        rules,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, (bool, int))},
        (transformers.__version__, tokenizers.__version__, trl.__version__),
    )
    return json_digest(facts)


def json_digest(facts: Any) -> str:
    """Of plain data."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _key(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    mix: SftMix | None,
    ends: Sequence[int],
) -> str | None:
    """Of everything that the splits depend on; None where a source can't be read, as `make` says.

    What judges the rows is no part of it, nor what only says how fast they are read.
    """
    data = recipe.data
    sources = [*data.train, *(data.eval or []), *(mix.data if mix else [])]
    try:
        contents = [_content(source) for source in sources]
    except (OSError, PrefcliError):
        return None
    return json_digest(
        {
            "format": [_FORMAT, __version__],
            "data": data.model_dump(mode="json", exclude={"checks", "num_proc"}),
            "mix": [s.model_dump(mode="json") for s in mix.data] if mix else None,
            "contents": contents,
            "seed": recipe.seed,
            "tokenizer": tokenizer_digest(tokenizer),
            "ends": sorted(ends),
            "method": [
                method.rows,
                method.trainer.prompt_margin,
                method.trainer.adds_special_tokens,
                method.trainer.max_merged_tokens,
                method.assistant_only,
                method.trainer.keeps_row_order,
                recipe.training.per_device_train_batch_size if method.pairs_neighbours else None,
            ],
        }
    )


def _content(source: Source) -> str:
    """Of a local file or folder what is in it, of a dataset on the hub what datasets calls it."""
    path = Path(source.path).expanduser()
    if not is_local(source.path):
        return json_digest([part.fingerprint for part in read(source, "data").parts])
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "blake2b").hexdigest()
        found.update(f"{file.relative_to(path)} {content}\n".encode())
    return found.hexdigest()
