"""Checks on the content of a checkpoint: is it complete, and which evaluation is still to run."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from prefcli.checkpoints.atomic import damage_of, has_list


def is_complete(checkpoint: Path) -> bool:
    """Return whether the checkpoint is as it was written, to its end."""
    return fault_of(checkpoint) is None


def fault_of(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used; None for one that is as it was written.

    transformers writes trainer_state.json last.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "trainer_state.json can't be read"
    weights = [*checkpoint.glob("*.safetensors")]
    for path in weights:
        if not _is_readable(path):
            return f"{path.name} can't be read"
    if has_list(checkpoint):
        return damage_of(checkpoint)
    # Written by an older prefcli, or copied without its list: check what transformers writes.
    sharded = [*checkpoint.glob("pytorch_model_fsdp*"), *checkpoint.glob("global_step*")]
    if not weights and not sharded:
        return "its weights are missing"
    if not any(checkpoint.glob("rng_state*.pth")):
        return "its random states are missing"
    states = [checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    if not sharded:
        states.append(checkpoint / "optimizer.pt")
    # torch saves zip files, whose table is at their end.
    return next((f"{path.name} can't be read" for path in states if not is_zipfile(path)), None)


def owes_evaluation(checkpoint: str | Path) -> bool:
    """Return whether the evaluation of the checkpoint's step still has to run.

    transformers writes its control flags into a checkpoint, and evaluates before it saves.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text("utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_evaluate"))


def _is_readable(weights: Path) -> bool:
    try:
        with safe_open(weights, framework="numpy") as file:
            return bool(list(file.keys()))
    except (SafetensorError, OSError):
        return False
