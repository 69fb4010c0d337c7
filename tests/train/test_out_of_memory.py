"""A GPU that is full before or after the steps is the recipe's problem, and not a bug."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefcli.errors import ExitCode, RecipeError
from prefcli.training import run as run_module
from prefcli.training.run import train


@pytest.mark.parametrize("where", ["check_policy", "placed", "make_trainer", "save_model"])
def test_out_of_memory_outside_the_steps_is_a_recipe_error(
    recipe_data, make_recipe, monkeypatch, where
):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    monkeypatch.setattr(run_module, where, full)
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError) as caught:
        train(recipe, recipe.dpo)
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.code) == (ExitCode.RECIPE, "TRN023")
    assert problem.message == (
        "the GPU is out of memory outside the training steps: "
        "CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text("utf-8"))
    assert run["status"] == "failed"
