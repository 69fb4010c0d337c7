"""Packages that some settings need in addition to prefcli's own."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.schema import Recipe
from prefcli.recipe.trackers import tracker_problems


def check_packages(recipe: Recipe, *, gpu_too: bool = True) -> None:
    """Raise RecipeError naming each setting whose package is missing, and how to install it.

    gpu_too: also check what only the machine with the GPUs must have.
    """
    problems = list(tracker_problems(recipe.logging))
    if gpu_too:
        problems += _gpu_problems(recipe)
    if problems:
        raise RecipeError(problems)


def _gpu_problems(recipe: Recipe) -> list[Problem]:
    model, training = recipe.model, recipe.training
    required: list[tuple[str, str, str, str]] = []
    if training.needs_bitsandbytes:
        required.append(("training.optim", training.optim, "bitsandbytes", "prefcli[quant]"))
    if model.quantization is not None:
        required.append(
            ("model.quantization", model.quantization, "bitsandbytes", "prefcli[quant]")
        )
    if model.attn_implementation == "flash_attention_2":
        required.append(
            ("model.attn_implementation", model.attn_implementation, "flash_attn", "flash-attn")
        )
    problems = []
    if model.quantization is not None and not torch.cuda.is_available():
        problems.append(
            Problem(
                "quantized weights need a GPU, and this machine has none",
                path="model.quantization",
                hint="run it on a machine with a GPU; --dry-run checks the rest of the recipe here",
                code="ENV053",
            )
        )
    problems += [
        Problem(
            f"{value} needs the package {package}, which is not installed",
            path=path,
            hint=f"run `pip install '{install}'`",
            code="ENV054",
        )
        for path, value, package, install in required
        if find_spec(package) is None
    ]
    return problems
