"""What of a model on the hub is in the cache, where the hub itself can't be asked."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

TOKENIZER = "tokenizer.json"
_TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json")
_INDEX = "model.safetensors.index.json"


def offline() -> bool:
    """Has the user, or the lack of a network, ruled out the hub?"""
    return bool(constants.HF_HUB_OFFLINE)


def missing_files(name: str, revision: str | None, *, weights: bool = True) -> list[str]:
    """Files that a run needs and the cache lacks. weights: those of the model, too."""

    def path(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    lacking = [] if path("config.json") else ["config.json"]
    if not any(path(file) for file in _TOKENIZERS):
        lacking.append(TOKENIZER)
    index = path(_INDEX)
    if index is not None:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        lacking += [shard for shard in sorted(shards) if weights and not path(shard)]
    elif weights and not path("model.safetensors"):
        lacking.append("model.safetensors (or its shards)")
    return lacking
