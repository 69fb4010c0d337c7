"""Use of the hub: the names of a recipe that are on it, and whether it is reachable."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from prefcli import first_failure
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe

_TIMEOUT = 3.0
"""Seconds to wait for the hub."""
_HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""huggingface_hub's variable, and its older name."""


def hub_names(recipe: Recipe) -> list[str]:
    """Models and datasets that are not local files."""
    data = [source.path for _, source in recipe.sources]
    model, reference = recipe.model, recipe.reference
    judges = [name for name, _ in recipe.judge_models.values()]
    names = [model.name_or_path, model.tokenizer, reference.name_or_path, *judges, *data]
    return [name for name in dict.fromkeys(names) if name is not None and not is_local(name)]


def go_offline_if_unreachable(recipe: Recipe) -> bool:
    """Set HF_HUB_OFFLINE=1 if the hub is unreachable; true if this call set it.

    Must be called before the libraries are imported. They would try five times per file, for half
    a minute per model, before they use their cache.
    """
    # The processes of one run must not decide separately.
    if first_failure.is_distributed() or not hub_names(recipe) or _is_offline() or _is_reachable():
        return False
    go_offline()
    return True


def go_offline() -> None:
    """Keep all libraries and child processes offline.

    Must be called before the libraries are imported, since most read the variables once.
    """
    os.environ.update(dict.fromkeys((*_HUB, "HF_DATASETS_OFFLINE"), "1"))


def _is_offline() -> bool:
    words = {"1", "on", "yes", "true"}
    return any(os.environ.get(name, "").lower() in words for name in _HUB)


def _is_reachable() -> bool:
    if any(
        os.environ.get(f"{name}_proxy") or os.environ.get(f"{name.upper()}_PROXY")
        for name in ("https", "all")
    ):
        return True  # only the proxy knows
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=_TIMEOUT).close()
    except OSError:
        return False
    return True
