"""The run directory: its files, and the run that it belongs to."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import BaseFileLock, FileLock, Timeout

from prefcli import __version__
from prefcli.checkpoints.atomic import write_text
from prefcli.checkpoints.completeness import fault_of, is_complete
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.console import warn
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.defaults import read_saved_recipe
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import (
    COMPLETIONS_FILE,
    HEALTH_FILE,
    METRICS_FILE,
    PAIRS_FILE,
    RECIPE_FILE,
    RECORD_FILE,
    SAMPLES_FILE,
)
from prefcli.secrets import redact

Status = Literal["running", "finished", "diverged", "failed", "preempted", "interrupted"]
_RESUMABLE = ("running", "failed", "preempted", "interrupted")

# What a run that was killed right after its start may have left.
_STARTED = {".lock", "recipe.yaml", "recipe.yaml.partial", "run.json.partial"}
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunDir:
    """The folder of one run. Files have fixed names: recipe.yaml, run.json, metrics.jsonl, model/.

    run.json is described by `RunRecord`.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.recipe = self.path / RECIPE_FILE
        self.run = self.path / RECORD_FILE
        self.metrics = self.path / METRICS_FILE
        self.health = self.path / HEALTH_FILE
        """One line per advice of a health rule."""
        self.samples = self.path / SAMPLES_FILE
        """One line per sample prompt and evaluation."""
        self.held_out = self.path / PAIRS_FILE
        """The held-out rows that each evaluation ranks lowest and highest."""
        self.completions = self.path / COMPLETIONS_FILE
        """Completions that were sampled for held-out prompts, with their scores."""
        self.model = self.path / "model"
        self.below = self.path / "below"
        """A copy of the adapter that this run's adapter is stacked on."""

    def check(
        self, recipe: Recipe, method: str, changes: ResumeDiff | None = None
    ) -> Status | None:
        """Return the state of the same run, None for a new one. RecipeError for other content.

        changes: which differences are accepted; by default none.
        """
        changes = changes or ResumeDiff()
        if self.path.exists() and not self.path.is_dir():
            raise _output_dir_error(f"{self.path} is a file", "name a folder", "RUN010")
        _check_writable(self.path)
        if not self.path.exists() or {p.name for p in self.path.iterdir()} <= _STARTED:
            return None
        if not self.recipe.is_file() or not self.run.is_file():
            raise _output_dir_error(
                f"{self.path} holds files that are not a prefcli run",
                "name a new or empty folder",
                "RUN011",
            )
        run = self.read_run()
        if run.get("status") in _RESUMABLE and not self.has_trained:
            return None  # it ended before there was anything to lose
        status: Status = run.get("status", "failed")
        lacks_model = status == "finished" and not _is_model(self.model)
        changes.judge(
            self.path,
            {
                "method": run.get("method"),
                **{key: run.get(key, value) for key, value in changes.here.items()},
                **read_saved_recipe(self.recipe, recipe, run.get("effective", {})),
            },
            {"method": method, **changes.here, **as_data(recipe)},
            finished=status == "finished" and not lacks_model,
        )
        return self._status_without_model() if lacks_model else status

    @property
    def has_trained(self) -> bool:
        """True if there is anything to lose: a checkpoint or a model."""
        return any(self.path.glob("checkpoint-*")) or self.model.exists()

    def _status_without_model(self) -> Status:
        """Return the state of a finished run without its model: a checkpoint can give it again."""
        if self.last_checkpoint()[0] is None:
            raise _output_dir_error(
                f"{self.path} holds a finished run without a complete {self.model.name}/, and no "
                "checkpoint to save it from",
                f"restore {self.model}, or name another output_dir to train it again",
                "RUN017",
            )
        warn(f"{self.model} is incomplete; it is saved again from the last checkpoint")
        return "failed"

    def lock(self) -> BaseFileLock:
        """Lock the folder until this process ends, however it ends. RecipeError if it is locked.

        There is one lock per run; only the main process takes it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise _output_dir_error(
                f"another prefcli process is writing into {self.path}",
                "wait for it to end, or name another folder",
                "RUN012",
            ) from None
        except OSError as error:
            raise _output_dir_error(
                f"{self.path} is not writable: {error.strerror}", "name another folder", "RUN013"
            ) from None
        return lock

    def checkpoint_to_resume(self, name: str) -> Path:
        """Return the checkpoint that --resume names. RecipeError unless this run can use it."""
        path = Path(name)
        if not path.is_dir() or path.resolve().parent != self.path.resolve():
            raise RecipeError(
                f"--resume {name}: not a checkpoint of the run in {self.path}",
                hint=f"name one of its folders, e.g. {self.path}/checkpoint-500",
                code="RUN014",
            )
        if (fault := fault_of(path)) is not None:
            raise RecipeError(
                f"--resume {name}: {fault}",
                hint="use --resume auto, which takes the last complete one",
                code="RUN015",
            )
        return path

    def start(self, recipe: Recipe, method: str) -> None:
        """Create the folder and save the recipe, before anything is loaded."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(as_data(recipe), sort_keys=False, allow_unicode=True)
        write_text(
            self.recipe,
            f"# What `prefcli {method}` ran, with every default, by prefcli {__version__}.\n{text}",
        )

    def read_run(self) -> dict[str, Any]:
        """Read run.json; empty if it is unreadable."""
        try:
            run = json.loads(self.run.read_text("utf-8"))
        except (ValueError, RecursionError):
            return {}
        return run if isinstance(run, dict) else {}

    def write_run(self, run: Mapping[str, Any]) -> None:
        write_text(self.run, redact(json.dumps(run, indent=2, default=str)) + "\n")

    def last_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """Return the newest complete checkpoint, and the incomplete ones newer than it."""
        checkpoints = sorted(
            (int(match[1]), path)
            for path in self.path.glob("checkpoint-*")
            if (match := _CHECKPOINT.fullmatch(path.name))
        )
        incomplete: list[Path] = []
        for _, path in reversed(checkpoints):
            if is_complete(path):
                return path, incomplete
            incomplete.append(path)
        return None, incomplete

    @property
    def logs(self) -> tuple[Path, ...]:
        """Files with one JSON object per line, each with its `step`."""
        return self.metrics, self.health, self.samples, self.held_out, self.completions

    def clear(self) -> None:
        """Start over: remove what a run left that never reached a checkpoint."""
        folders = (*self.path.glob("checkpoint-*"), *self.path.glob("below*"))
        for path in (*self.logs, *folders):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def as_data(recipe: Recipe) -> dict[str, Any]:
    """Convert the recipe to the plain data that is saved; absent sections are omitted."""
    data = recipe.model_dump(mode="json", by_alias=True)
    return {key: _escaped(value) for key, value in data.items() if value is not None}


def _escaped(value: Any) -> Any:
    """Escape ${...}, which a chat template may contain, so that loading does not interpolate it."""
    if isinstance(value, str):
        return value.replace("${", r"\${")
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return {k: _escaped(v) for k, v in value.items()} if isinstance(value, dict) else value


def _is_model(folder: Path) -> bool:
    """Check whether a folder holds a model or an adapter with readable weights."""
    is_full, is_adapter = (
        (folder / name).is_file() for name in ("config.json", "adapter_config.json")
    )
    if not is_full and not is_adapter:
        return False
    # Here, since it imports torch, which reports of a run folder do without.
    from prefcli.model.weight_files import has_model_files, read_adapter_files, read_model_files

    is_full = is_full and has_model_files(folder)
    if not is_full and not is_adapter:
        return False
    try:
        (read_model_files if is_full else read_adapter_files)(folder)
    except RecipeError:
        return False
    return True


def _check_writable(path: Path) -> None:
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise _output_dir_error(f"{existing} is a file", "name another folder", "RUN010")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _output_dir_error(f"{existing} is not writable", "name another folder", "RUN013")


def _output_dir_error(message: str, hint: str, code: str) -> RecipeError:
    return RecipeError(Problem(message, path="output_dir", hint=hint, code=code))
