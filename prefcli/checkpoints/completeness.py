"""Checks on the content of a checkpoint: is it complete, and which evaluation is still to run."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from prefcli.checkpoints.atomic import has_its_files


def is_complete(checkpoint: Path) -> bool:
    """Return whether the checkpoint was written to its end.

    transformers writes trainer_state.json last.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    weights = [*checkpoint.glob("*.safetensors")]
    if not all(map(_is_readable, weights)):
        return False
    listed = has_its_files(checkpoint)
    if listed is not None:
        return listed
    # Written by an older prefcli, or copied without its list: check what transformers writes.
    sharded = [*checkpoint.glob("pytorch_model_fsdp*"), *checkpoint.glob("global_step*")]
    states = [checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    if not sharded:
        states.append(checkpoint / "optimizer.pt")
    return (
        bool(weights or sharded)
        and any(checkpoint.glob("rng_state*.pth"))
        # torch saves zip files, whose table is at their end.
        and all(map(is_zipfile, states))
    )


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
