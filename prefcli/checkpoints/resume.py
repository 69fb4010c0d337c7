"""The state of a run directory, and the checkpoint to resume from."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefcli.checkpoints.atomic_checkpoints import clear_leftovers
from prefcli.checkpoints.completeness import fault_of, owes_evaluation
from prefcli.checkpoints.metrics_log import MetricsLog, truncate_logs
from prefcli.checkpoints.permissions import refuse_untrusted
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.checkpoints.run_dir import RunDir, Status
from prefcli.checkpoints.run_record import RunRecord
from prefcli.console import is_main_process, warn
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
    """Return the state of the run in the folder, None for a new run. Raises if it cannot resume."""
    if folder.run.is_file():
        RunRecord.load(folder)  # refuses a damaged file before its values are compared
    status = folder.check(recipe, method.name, changes)
    if status == "finished" and changes is not None and changes.accepted:
        raise RecipeError(
            Problem(
                f"{folder.path} holds a finished run, so the changed settings have no effect",
                path="output_dir",
                hint=f"name another output_dir, and start from {folder.model}",
                code="RUN001",
            )
        )
    if status == "diverged" and not _rule_was_relaxed(folder, recipe):
        raise DivergedError(
            Problem(
                f"the run in {folder.path} diverged",
                path="output_dir",
                hint="change the recipe and name another output_dir",
                code="RUN002",
            )
        )
    if status is not None and resume == "never":
        raise RecipeError(
            Problem(
                f"{folder.path} already holds a run, and --resume is never",
                path="output_dir",
                hint="name another folder, or use --resume auto to resume the run",
                code="RUN003",
            )
        )
    if resume not in ("auto", "never"):
        if status == "finished":
            raise RecipeError(
                f"--resume {resume}: the run in {folder.path} is finished",
                hint="name another output_dir to train it again",
                code="RUN004",
            )
        folder.checkpoint_to_resume(resume)
    return status


def _rule_was_relaxed(folder: RunDir, recipe: Recipe) -> bool:
    """Return whether the recipe no longer lets the health rule that stopped the run stop it."""
    stops = [row["rule"] for row in MetricsLog(folder).advice() if row["level"] == "stop"]
    return bool(stops) and all(getattr(recipe.health, name).level != "stop" for name in stops)


def find_resume_checkpoint(folder: RunDir, resume: str) -> Path | None:
    """Return the checkpoint to resume an existing run from, None if it has no complete one."""
    if resume in ("auto", "never"):
        checkpoint, _ = folder.last_checkpoint()
    else:
        checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is not None:
        refuse_untrusted(checkpoint)
    return checkpoint


def clean_run_dir(folder: RunDir, checkpoint: Path | None) -> None:
    """Remove what an interrupted run left beyond the checkpoint that this one resumes from."""
    _, incomplete = folder.last_checkpoint()
    for path in incomplete if checkpoint is not None else ():
        warn(f"{path.name} is removed, since {fault_of(path)}")
    if not is_main_process():
        return
    clear_leftovers(folder)
    if checkpoint is None:
        folder.clear()
        return
    for path in incomplete:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
    step = int(checkpoint.name.rpartition("-")[2])
    truncate_logs(folder, step, evaluation=owes_evaluation(checkpoint))
