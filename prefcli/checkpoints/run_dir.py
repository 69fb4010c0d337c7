"""The run folder: whose it is, what is in it, and where a run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import is_zipfile

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError, safe_open

from prefcli import __version__
from prefcli.checkpoints.atomic import has_its_files, writing
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.errors import Problem, RecipeError
from prefcli.metrics import is_eval
from prefcli.recipe.defaults import read_saved_recipe
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import (
    HEALTH_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    RECORD_FILE,
    SAMPLES_FILE,
)
from prefcli.secrets import redact

Status = Literal["running", "finished", "diverged", "failed", "preempted"]

# What a run that was killed in its first moments may have left.
_BEGUN = {".lock", "recipe.yaml", "recipe.yaml.partial", "run.json.partial"}
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunDir:
    """One run's folder. Files are found by name: recipe.yaml, run.json, metrics.jsonl, model/."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.recipe = self.path / RECIPE_FILE
        self.run = self.path / RECORD_FILE
        self.metrics = self.path / METRICS_FILE
        self.health = self.path / HEALTH_FILE
        """What the health rules said, an object an advice."""
        self.samples = self.path / SAMPLES_FILE
        """What fixed prompts were answered, an object a prompt and time."""
        self.model = self.path / "model"
        self.below = self.path / "below"
        """A copy of the adapter that this run's is stacked on."""

    def check(
        self, recipe: Recipe, method: str, changes: ResumeDiff | None = None
    ) -> Status | None:
        """None for a new run, else the state of the same run. RecipeError for any other content.

        changes: what may differ; left out, nothing.
        """
        changes = changes or ResumeDiff()
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(
                Problem(f"{self.path} is a file", path="output_dir", hint="name a folder")
            )
        _check_writable(self.path)
        if not self.path.exists() or {p.name for p in self.path.iterdir()} <= _BEGUN:
            return None
        if not self.recipe.is_file() or not self.run.is_file():
            raise RecipeError(
                Problem(
                    f"{self.path} holds something that is no prefcli run",
                    path="output_dir",
                    hint="name a new or empty folder",
                )
            )
        run = self.read_run()
        trained = any(self.path.glob("checkpoint-*")) or self.model.exists()
        if run.get("status") in ("running", "failed", "preempted") and not trained:
            return None  # a gate said no, or it crashed before there was anything to lose
        changes.judge(
            self.path,
            {
                "method": run.get("method"),
                **{key: run.get(key, value) for key, value in changes.here.items()},
                **read_saved_recipe(self.recipe, recipe, run.get("effective", {})),
            },
            {"method": method, **changes.here, **as_data(recipe)},
        )
        status: Status = run.get("status", "failed")
        return status

    def lock(self) -> BaseFileLock:
        """Keep other processes out until this one ends, however it ends. RecipeError if one is in.

        One lock a run: taken by the main process alone.
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise RecipeError(
                Problem(
                    f"another prefcli is writing into {self.path}",
                    path="output_dir",
                    hint="wait for it, or name another folder",
                )
            ) from None
        except OSError as error:
            raise RecipeError(
                Problem(
                    f"{self.path} can't be written: {error.strerror}",
                    path="output_dir",
                    hint="name another folder",
                )
            ) from None
        return lock

    def checkpoint_to_resume(self, name: str) -> Path:
        """The checkpoint that --resume names. RecipeError unless it is a whole one of this run."""
        path = Path(name)
        if not path.is_dir() or path.resolve().parent != self.path.resolve():
            raise RecipeError(
                f"--resume {name}: no checkpoint of the run in {self.path}",
                hint=f"name one of its folders, as in {self.path}/checkpoint-500",
            )
        if not is_complete(path):
            raise RecipeError(
                f"--resume {name}: this checkpoint is not complete",
                hint="leave --resume at auto: it takes the last complete one",
            )
        return path

    def start(self, recipe: Recipe, method: str) -> None:
        """Make the folder and write down what will be run, before anything is loaded."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(as_data(recipe), sort_keys=False, allow_unicode=True)
        _write(
            self.recipe,
            f"# What `prefcli {method}` ran, with every default, by prefcli {__version__}.\n{text}",
        )

    def read_run(self) -> dict[str, Any]:
        try:
            run = json.loads(self.run.read_text("utf-8"))
        except ValueError:
            return {}
        return run if isinstance(run, dict) else {}

    def write_run(self, run: Mapping[str, Any]) -> None:
        _write(self.run, redact(json.dumps(run, indent=2, default=str)) + "\n")

    def last_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """(the newest complete checkpoint, torn ones newer than it)."""
        found = sorted(
            (int(m[1]), p)
            for p in self.path.glob("checkpoint-*")
            if (m := _CHECKPOINT.fullmatch(p.name))
        )
        torn: list[Path] = []
        for _, path in reversed(found):
            if is_complete(path):
                return path, torn
            torn.append(path)
        return None, torn

    @property
    def _told_by_step(self) -> tuple[Path, ...]:
        """Files of one JSON object a line, each with its `step`."""
        return self.metrics, self.health, self.samples

    def forget_after(self, step: int, *, evaluation: bool = False) -> None:
        """Drop what was told beyond `step`, which will be trained, and told, again; with
        `evaluation` also that of the step itself."""
        for path in self._told_by_step:
            if path.exists():
                lines = _lines_up_to(step, path, without_evaluation=evaluation)
                _write(path, "".join(f"{line}\n" for line in lines))

    def clear(self) -> None:
        """Start over: the same run never got as far as a checkpoint."""
        folders = (*self.path.glob("checkpoint-*"), *self.path.glob("below*"))
        for path in (*self._told_by_step, *folders):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it is saved: sections that are not there are left out."""
    data = recipe.model_dump(mode="json", by_alias=True)
    return {key: _escaped(value) for key, value in data.items() if value is not None}


def _escaped(value: Any) -> Any:
    """What is resolved stays so when it is read again: a template may hold ${...} of its own."""
    if isinstance(value, str):
        return value.replace("${", r"\${")
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return {k: _escaped(v) for k, v in value.items()} if isinstance(value, dict) else value


def is_complete(checkpoint: Path) -> bool:
    """Was the checkpoint written to its end? transformers writes trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    weights = [*checkpoint.glob("*.safetensors")]
    if not all(map(_reads, weights)):
        return False
    listed = has_its_files(checkpoint)
    if listed is not None:
        return listed
    # Of an earlier prefcli, or copied without its list: by what transformers writes.
    sharded = [*checkpoint.glob("pytorch_model_fsdp*"), *checkpoint.glob("global_step*")]
    states = [checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    if not sharded:
        states.append(checkpoint / "optimizer.pt")
    return (
        bool(weights or sharded)
        and any(checkpoint.glob("rng_state*.pth"))
        # torch saves zip files, whose table stands at their end.
        and all(map(is_zipfile, states))
    )


def owes_evaluation(checkpoint: str | Path) -> bool:
    """Was it saved at a step whose evaluation had still to be done?

    transformers writes its control flags into a checkpoint, and evaluates before it saves.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text("utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_evaluate"))


def _reads(weights: Path) -> bool:
    try:
        with safe_open(weights, framework="numpy") as file:
            return bool(list(file.keys()))
    except (SafetensorError, OSError):
        return False


def _check_writable(path: Path) -> None:
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise RecipeError(
            Problem(f"{existing} is a file", path="output_dir", hint="name another folder")
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(
            Problem(f"{existing} is not writable", path="output_dir", hint="name another folder")
        )


def _lines_up_to(step: int, path: Path, *, without_evaluation: bool) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line a kill cut short
        of_evaluation = "prompt" in row or is_eval(row)
        last = step - 1 if without_evaluation and of_evaluation else step
        if row["step"] <= last:
            yield line


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also when the process is killed."""
    partial = path.with_name(path.name + ".partial")
    with writing(path.name):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
