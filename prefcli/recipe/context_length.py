"""The context of a model in a local folder, from its config.json. Without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.schema import Recipe

CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "n_ctx",
)
"""What model families call the context in their configs."""


def context_of(name: str) -> int | None:
    """Return the context in tokens of a model or of an adapter's base model.

    None for a model that is not in a local folder, or whose config does not say it.
    """
    folder = Path(name).expanduser()
    config = _read(folder / "config.json")
    if not config and (base := _read(folder / "adapter_config.json")):
        config = _read(Path(str(base.get("base_model_name_or_path"))).expanduser() / "config.json")
    for part in (config.get("text_config"), config):
        lengths = [part.get(key) for key in CONTEXT_NAMES] if isinstance(part, dict) else []
        for length in lengths:
            if isinstance(length, int) and length > 0:
                return length
    return None


def with_max_length(recipe: Recipe) -> Recipe:
    """Return the recipe with max_length lowered to the context, if the recipe does not set it."""
    if "max_length" in recipe.data.model_fields_set:
        return recipe
    context = context_of(recipe.model.name_or_path)
    if context is None or not 8 <= context < recipe.data.max_length:
        return recipe
    data = recipe.data.model_copy(update={"max_length": context})
    return recipe.model_copy(update={"data": data})


def context_problem(length: int, context: int, where: str = "model") -> Problem | None:
    """Return what is wrong with a max_length of `length` tokens, if it exceeds the context."""
    if length <= context:
        return None
    return Problem(
        f"{length} exceeds the {where}'s context of {context} tokens",
        path="data.max_length",
        hint=f"write {context} or less",
        code="MDL023",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # the check of the model reports it
    return document if isinstance(document, dict) else {}
