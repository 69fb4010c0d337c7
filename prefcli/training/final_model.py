"""The final weights: model/ appears whole, and read back."""

from __future__ import annotations

import shutil
from typing import Any

from transformers import Trainer

from prefcli.checkpoints.atomic import place, writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import is_main_process, say
from prefcli.model import Device
from prefcli.model.adapter_merge import sum_adapters
from prefcli.recipe.schema import Recipe
from prefcli.training.verify_model import log_probabilities, probe_rows, verify_model


def save_model(trainer: Trainer, folder: RunDir, recipe: Recipe, device: Device) -> dict[str, Any]:
    """Written beside its place, read back, and moved there; gives what run.json says of it.

    An adapter in it lies on plain weights: one stacked on another becomes the sum of both.
    Raises PrefcliError where what was written is not what was trained; it stays in model.partial.
    """
    partial = folder.path / "model.partial"
    rows = probe_rows(trainer)
    # Each process takes part, as none may hold the whole model.
    trained = log_probabilities(trainer.model, rows, autocast=device.autocast(recipe.model))
    if is_main_process():
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing("model/"):
            _write(trainer, str(partial))
            if not is_main_process():
                return {}
            (partial / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(partial / "ref", ignore_errors=True)  # the reference's adapter
            if recipe.model.adapter == "stack":
                sum_adapters(folder.below, partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # it gives its room on the disk back
        raise
    found = verify_model(partial, trainer, recipe, device, rows, trained)
    say(found.line())
    with writing("model/"):
        place(partial, folder.model)
    return found.as_dict()


def _write(trainer: Trainer, place: str) -> None:
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None:
        # Checkpoints are best saved in shards, of which save_model would write nothing at all.
        fsdp.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(place)
