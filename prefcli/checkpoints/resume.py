"""Where a run goes on: its folder's state, and the checkpoint to take."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefcli.checkpoints.atomic_checkpoints import clear_leftovers
from prefcli.checkpoints.metrics_log import MetricsLog
from prefcli.checkpoints.permissions import refuse_foreign
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.checkpoints.run_dir import RunDir, Status, owes_evaluation
from prefcli.console import is_main_process, say, warn
from prefcli.errors import DivergedError, Problem, RecipeError
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe


def check_run_dir(
    folder: RunDir,
    recipe: Recipe,
    method: Method,
    resume: str,
    changes: ResumeDiff | None = None,
) -> Status | None:
    """The state of the run in the folder, None if it is new. Raises what forbids going on."""
    status = folder.check(recipe, method.name, changes)
    if status == "finished" and changes is not None and changes.taken:
        raise RecipeError(
            Problem(
                f"{folder.path} holds a finished run, and what is changed would have no effect",
                path="output_dir",
                hint=f"name another output_dir, and start from {folder.model}",
            )
        )
    if status == "diverged" and not _forgiven(folder, recipe):
        raise DivergedError(
            Problem(
                f"{folder.path} holds this very run, and it diverged",
                hint="change the recipe and name another output_dir",
            )
        )
    if status is not None and resume == "never":
        raise RecipeError(
            Problem(
                f"{folder.path} holds a run already",
                path="output_dir",
                hint="name another folder, or leave --resume at auto to go on",
            )
        )
    if resume not in ("auto", "never"):
        if status == "finished":
            raise RecipeError(
                f"--resume {resume}: this run is finished, and would be trained again",
                hint="name another output_dir for another run",
            )
        folder.checkpoint_to_resume(resume)
    return status


def _forgiven(folder: RunDir, recipe: Recipe) -> bool:
    """Did a health rule stop it that the recipe, by now, no longer lets stop?"""
    stops = [advice["rule"] for advice in MetricsLog(folder).advice() if advice["level"] == "stop"]
    return bool(stops) and all(getattr(recipe.health, name).level != "stop" for name in stops)


def find_resume_checkpoint(folder: RunDir, resume: str, *, started: bool) -> Path | None:
    """The checkpoint to go on from, after clearing away what an interrupted run left half done."""
    if is_main_process():
        clear_leftovers(folder)
    if not started:
        if is_main_process():
            folder.clear()
        return None
    if resume == "auto":
        checkpoint, torn = folder.last_checkpoint()
        for path in torn:
            warn(f"{path.name} was cut short while it was written; it is removed")
            if is_main_process():
                shutil.rmtree(path, ignore_errors=True)
    else:
        checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is None:
        say(f"{folder.path} has no complete checkpoint yet: starting over")
        if is_main_process():
            folder.clear()
        return None
    refuse_foreign(checkpoint)
    say(f"resuming from {checkpoint}")
    if is_main_process():
        step = int(checkpoint.name.rpartition("-")[2])
        folder.forget_after(step, evaluation=owes_evaluation(checkpoint))
    return checkpoint
