"""The automatic settings of an earlier part of a run, which a resumed run keeps."""

from __future__ import annotations

from prefcli.checkpoints.run_dir import RunDir
from prefcli.first_failure import launched
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.defaults import with_batch_size, with_strategy
from prefcli.recipe.schema import Recipe


def with_saved_choices(recipe: Recipe) -> Recipe:
    """Return the recipe with the automatic settings that the run in its folder started with.

    The strategy stays open under a launcher, and if the saved one has fewer processes.
    """
    folder = RunDir(recipe.output_dir)
    if not folder.run.is_file() or not folder.has_trained:
        return recipe
    run = folder.read_run()
    strategy: Strategy | None = run.get("strategy")
    rows = run.get("effective", {}).get("per_device_train_batch_size")
    launch = recipe.launch
    several = (launch.processes or 1) * launch.nodes > 1
    is_open = launch.strategy == "auto" and not launched()
    if is_open and strategy is not None and not (several and strategy == "single"):
        recipe = with_strategy(recipe, strategy)
    if recipe.training.per_device_train_batch_size == "auto" and rows is not None:
        recipe = with_batch_size(recipe, rows)
    return recipe
