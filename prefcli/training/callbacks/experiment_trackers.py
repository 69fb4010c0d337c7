"""transformers' tracker callbacks, with the recipe in their configuration and guarded failures."""

from __future__ import annotations

import atexit
import copy
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from prefcli.checkpoints.run_dir import as_data
from prefcli.console import say, warn
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line

PROJECT = "prefcli"
"""The project of runs, unless an environment variable of the tracker names another."""

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def guard_trackers(trainer: Trainer, recipe: Recipe) -> None:
    """Replace each of the trainer's trackers by a GuardedTracker."""
    names = {INTEGRATION_TO_CALLBACK[name]: name for name in recipe.logging.report_to}
    handler = trainer.callback_handler
    handler.callbacks = [
        GuardedTracker(names[type(callback)], callback, recipe)
        if type(callback) in names
        else callback
        for callback in handler.callbacks
    ]


class GuardedTracker(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """A tracker that stops the run if it cannot start, and is disabled if it fails later.

    metrics.jsonl has what it misses.
    """

    def __init__(self, name: str, tracker: TrainerCallback, recipe: Recipe) -> None:
        self._name = name
        self._tracker = tracker
        self._recipe = recipe
        self._disabled = False
        self._evaluated_step = -1
        self._awaits_evaluation = False
        """Training has ended, and its last evaluation is still to come."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            self._disabled = True
            return
        folder = self._recipe.output_dir
        if self._name == "tensorboard":
            self._tracker.logging_dir = self._tracker.logging_dir or f"{folder}/tensorboard"
            say(f"tracking: tensorboard --logdir {self._tracker.logging_dir}")
        args = _with_recipe(args, self._recipe)
        try:
            with _environment(folder), _stdout_as_log(self._name):
                self._tracker.on_train_begin(args, state, *rest, **kwargs)
        except Exception as error:
            raise RecipeError(
                Problem(
                    f"{self._name} cannot start: {first_line(error)}",
                    code="TRN101",
                    path="logging.report_to",
                    hint=f"{_HINTS.get(self._name, '')}remove it from the list; metrics.jsonl is "
                    "always written",
                )
            ) from error
        if self._name == "wandb":
            # wandb detects a failed run only when the process ends, and then writes to stdout.
            atexit.register(self._forward, "finish", exit_code=1)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_log", *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_save", *args, **kwargs)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        self._evaluated_step = state.global_step
        if self._awaits_evaluation:
            self._end(args, state, *rest, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        # A tracker that has ended would start another run for the rows of a later evaluation.
        has_eval = self._recipe.data.eval is not None
        self._awaits_evaluation = has_eval and self._evaluated_step != state.global_step
        if not self._awaits_evaluation:
            self._end(args, state, *rest, **kwargs)

    def _end(self, *args: Any, **kwargs: Any) -> None:
        self._awaits_evaluation = False
        self._forward("on_train_end", *args, **kwargs)
        if self._name == "wandb":
            self._forward("finish")
        self._disabled = True

    def _forward(self, event: str, *args: Any, **kwargs: Any) -> None:
        if self._disabled:
            return
        try:
            with _stdout_as_log(self._name):
                target = self._tracker._wandb if event == "finish" else self._tracker
                getattr(target, event)(*args, **kwargs)
        except Exception as error:
            self._disabled = True
            warn(
                f"{self._name} failed and was disabled: {first_line(error)}; metrics.jsonl is "
                "still written"
            )


_HINTS = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later; or ",
    "mlflow": "set MLFLOW_TRACKING_URI to a reachable server, or to a file: or sqlite: path; or ",
}


def _with_recipe(args: TrainingArguments, recipe: Recipe) -> TrainingArguments:
    """Return arguments that trackers save as the configuration, with the recipe in it."""
    extended = copy.copy(args)
    extended.project = PROJECT
    plain = extended.to_dict()
    extended.to_dict = lambda: {**plain, "recipe": as_data(recipe)}
    return extended


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Set the defaults that trackers take from environment variables only."""
    defaults: Mapping[str, str] = {
        "WANDB_DIR": str(Path(folder).absolute()),
        "WANDB_PROJECT": PROJECT,
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
    }
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _stdout_as_log(name: str) -> Iterator[None]:
    """Print what a tracker prints as log lines, without colours and not into a JSON document."""
    if name == "wandb":
        yield  # keeps the stdout that it finds for later, and writes to stderr itself
        return
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        lines = _ESCAPE.sub("", printed.getvalue()).splitlines()
        plain = [line.removeprefix(f"{name}:").strip(" *") for line in lines]
        say(*(f"tracking: {name}: {line}" for line in plain if line))
