"""The final model: model/ appears once it is complete and verified."""

from __future__ import annotations

import shutil
from typing import Any

from transformers import Trainer

from prefcli.checkpoints.atomic import place, writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import detail, is_main_process
from prefcli.model import Device
from prefcli.model.adapter_merge import sum_adapters
from prefcli.model.parts import towers
from prefcli.model.tokenizer import processor_files
from prefcli.recipe.schema import Recipe
from prefcli.training.verify_model import probe_rows, score_rows, verify_model


def save_model(trainer: Trainer, folder: RunDir, recipe: Recipe, device: Device) -> dict[str, Any]:
    """Write the model next to its final place, verify it and move it; return its entry of run.json.

    A stacked adapter is saved as the sum with the one below it, for the plain base model.
    Raises PrefcliError if the files are not the trained model; they stay in model.partial.
    """
    partial = folder.path / "model.partial"
    rows = probe_rows(trainer)
    # Every process takes part, since none may hold the whole model.
    trained = score_rows(trainer.model, rows, autocast=device.autocast(recipe.model))
    if is_main_process():
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing("model/"):
            write_model(trainer, str(partial))
            if not is_main_process():
                return {}
            (partial / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(partial / "ref", ignore_errors=True)  # the adapter of the reference
            if not recipe.trains_adapter and towers(
                trainer.accelerator.unwrap_model(trainer.model)
            ):
                for file in processor_files(recipe.model):
                    shutil.copyfile(file, partial / file.name)
            if recipe.model.adapter == "stack":
                sum_adapters(folder.below, partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # free the disk
        raise
    verification = verify_model(partial, trainer, recipe, device, rows, trained)
    detail(verification.line())
    with writing("model/"):
        place(partial, folder.model)
    return verification.as_dict()


def write_model(trainer: Trainer, place: str) -> None:
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None:
        # Checkpoints are saved in shards; save_model would write nothing in that mode.
        fsdp.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(place)
