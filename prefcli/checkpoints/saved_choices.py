"""The automatic settings of an earlier part of a run, which a resumed run keeps."""

from __future__ import annotations

from prefcli.checkpoints.run_dir import RunDir
from prefcli.first_failure import launched
from prefcli.recipe.schema import Recipe


def with_saved_choices(recipe: Recipe) -> Recipe:
    """Return the recipe with the automatic settings that the run in its folder started with.

    The strategy stays open under a launcher, and if the saved one has fewer processes.
    """
    folder = RunDir(recipe.output_dir)
    if not folder.run.is_file() or not folder.has_trained:
        return recipe
    run = folder.read_run()
    strategy = run.get("strategy")
    rows = run.get("effective", {}).get("per_device_train_batch_size")
    launch, training = recipe.launch, recipe.training
    several = (launch.processes or 1) * launch.nodes > 1
    fits = strategy not in (None, "fsdp1") and not (several and strategy == "single")
    if launch.strategy == "auto" and fits and not launched():
        launch = launch.model_copy(update={"strategy": strategy})
    if training.per_device_train_batch_size == "auto" and rows is not None:
        training = training.model_copy(update={"per_device_train_batch_size": rows})
    return recipe.model_copy(update={"launch": launch, "training": training})
