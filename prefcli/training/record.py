"""What run.json says of a run from its start: versions, machine, lineage."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefcli import __version__
from prefcli.methods import Method
from prefcli.model import Machine
from prefcli.recipe.schema import Recipe
from prefcli.training.folder import RunFolder


def first_entry(recipe: Recipe, method: Method, device: Machine) -> dict[str, Any]:
    return {
        "status": "running",
        "method": method.name,
        "started": now(),
        "prefcli": __version__,
        "versions": {
            name: version(name)
            for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
        },
        "python": platform.python_version(),
        "device": {"kind": device.kind, "name": device.name},
        "lineage": _lineage(recipe),
    }


def _lineage(recipe: Recipe) -> list[Mapping[str, Any]]:
    """The stages behind the starting weights, oldest first, as far as run folders tell."""
    name = recipe.model.name_or_path
    parent = RunFolder(str(Path(name).parent))
    before: list[Mapping[str, Any]] = []
    if Path(name).name == "model" and parent.run.is_file():
        run = parent.read_run()
        before = [*run.get("lineage", []), {"stage": run.get("method"), "model": name}]
        return before
    return [{"stage": "start", "model": name, "revision": recipe.model.revision}]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
