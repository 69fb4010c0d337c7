"""What run.json says of a run from its start: versions, machine, lineage."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefcli import __version__
from prefcli.checkpoints.run_dir import RunDir
from prefcli.methods import Method
from prefcli.model import Device, resolve_model
from prefcli.recipe.schema import Recipe


def first_entry(recipe: Recipe, method: Method, device: Device) -> dict[str, Any]:
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
        "lineage": lineage(recipe),
    }


def lineage(recipe: Recipe) -> list[dict[str, Any]]:
    """The stages behind the starting weights, oldest first, as far as run folders tell."""
    name = recipe.model.name_or_path
    parent = RunDir(str(Path(name).parent))
    if Path(name).name == "model" and parent.run.is_file():
        run = parent.read_run()
        stage = {"stage": run.get("method", "?"), "model": name}
        before = run.get("lineage", [])
    else:
        start = resolve_model(recipe.model)
        stage = {"stage": "start", "model": name, "revision": recipe.model.revision}
        before = []
        if start.adapter is not None:
            stage["stage"] = "adapter"
            before = [{"stage": "start", "model": start.base.name_or_path}]
    if recipe.model.adapter is not None:
        stage["adapter"] = recipe.model.adapter
    return [*before, stage]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
