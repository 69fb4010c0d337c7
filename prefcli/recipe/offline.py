"""What a recipe takes from the hub, and whether the hub is there."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from prefcli import first_failure
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe

_PATIENCE = 3.0
"""Seconds."""
_HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Either is huggingface_hub's, the second by its older name."""


def hub_names(recipe: Recipe) -> list[str]:
    """Models and datasets that are no files here."""
    data = [source.path for _, source in recipe.sources]
    names = [recipe.model.name_or_path, recipe.reference.name_or_path, *data]
    return [name for name in dict.fromkeys(names) if name is not None and not is_local(name)]


def settle_offline(recipe: Recipe) -> bool:
    """Where the hub does not answer, take it as HF_HUB_OFFLINE=1: true if that was decided here.

    To be called before the libraries are imported. They would try five times for each file, for
    half a minute a model, before they look into their cache.
    """
    # Processes of one run must not decide it each for itself.
    if first_failure.is_distributed() or not hub_names(recipe) or _said_offline() or _answers():
        return False
    go_offline()
    return True


def go_offline() -> None:
    """No library asks the hub from here on; to be called before they are imported, as most look
    once. Child processes inherit it."""
    os.environ.update(dict.fromkeys((*_HUB, "HF_DATASETS_OFFLINE"), "1"))


def _said_offline() -> bool:
    words = {"1", "on", "yes", "true"}
    return any(os.environ.get(name, "").lower() in words for name in _HUB)


def _answers() -> bool:
    if any(
        os.environ.get(f"{name}_proxy") or os.environ.get(f"{name.upper()}_PROXY")
        for name in ("https", "all")
    ):
        return True  # only the proxy knows
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True
