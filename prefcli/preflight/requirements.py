"""Packages that some settings need beyond prefcli's own: told before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.schema import Recipe
from prefcli.recipe.trackers import tracker_problems


def check_packages(recipe: Recipe, *, gpu_too: bool = True) -> None:
    """Raises RecipeError naming the setting and the command that installs what it needs.

    gpu_too: also what only the machine of the real run must have.
    """
    needs: list[tuple[str, str, str, str]] = []
    if recipe.training.needs_bitsandbytes:
        needs.append(("training.optim", recipe.training.optim, "bitsandbytes", "prefcli[quant]"))
    if recipe.model.quantization is not None:
        bits = recipe.model.quantization
        needs.append(("model.quantization", bits, "bitsandbytes", "prefcli[quant]"))
    if recipe.model.attn_implementation == "flash_attention_2":
        value = recipe.model.attn_implementation
        needs.append(("model.attn_implementation", value, "flash_attn", "flash-attn"))
    if not gpu_too:
        needs = []
    problems = tracker_problems(recipe.logging)
    if gpu_too and recipe.model.quantization is not None and not torch.cuda.is_available():
        problems.append(
            Problem(
                "there is no GPU here, and quantised weights need one",
                path="model.quantization",
                hint="run it on a GPU; --dry-run proves the rest of the recipe here",
            )
        )
    problems += [
        Problem(f"{value} needs {package}", path=path, hint=f"pip install '{install}'")
        for path, value, package, install in needs
        if find_spec(package) is None
    ]
    if problems:
        raise RecipeError(problems)
