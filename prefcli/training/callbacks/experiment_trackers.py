"""transformers' trackers, made to tell what a run is and kept from ending it."""

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

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from prefcli.checkpoints.run_dir import as_data
from prefcli.console import say, warn
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.schema import Recipe

PROJECT = "prefcli"
"""Where the tracker itself is not told another: see `_environment`."""

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def guard_trackers(trainer: Trainer, recipe: Recipe) -> None:
    """Put a `Tracking` in the place of each of the trainer's trackers."""
    names = {INTEGRATION_TO_CALLBACK[name]: name for name in recipe.logging.report_to}
    handler = trainer.callback_handler
    handler.callbacks = [
        Tracking(names[type(each)], each, recipe) if type(each) in names else each
        for each in handler.callbacks
    ]


class Tracking(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """One tracker: it must begin, or the run does not; later on, it may fail alone.

    metrics.jsonl holds whatever it misses.
    """

    def __init__(self, name: str, tracker: TrainerCallback, recipe: Recipe) -> None:
        self._name = name
        self._tracker = tracker
        self._recipe = recipe
        self._off = False
        self._evaluated = -1
        self._waits = False
        """Training is over, and its last evaluation is yet to come."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            self._off = True
            return
        folder = self._recipe.output_dir
        if self._name == "tensorboard":
            self._tracker.logging_dir = self._tracker.logging_dir or f"{folder}/tensorboard"
            say(f"tracking: tensorboard: tensorboard --logdir {self._tracker.logging_dir}")
        try:
            with _environment(folder), _heard(self._name):
                self._tracker.on_train_begin(_as_told(args, self._recipe), state, control, **kwargs)
        except Exception as error:
            raise RecipeError(
                Problem(
                    f"{self._name} can't begin: {_words(error)}",
                    path="logging.report_to",
                    hint=_HINTS.get(self._name, "")
                    + "or take it out of the list: metrics.jsonl is written anyway",
                )
            ) from error
        if self._name == "wandb":
            # Of a run that fails it learns at the end of the process, and writes past our log.
            atexit.register(self._tell, "finish", exit_code=1)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_log", *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_save", *args, **kwargs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._evaluated = state.global_step
        if self._waits:
            self._end(args, state, control, **kwargs)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """A tracker that has ended would begin another run for a row that comes after."""
        self._waits = self._recipe.data.eval is not None and self._evaluated != state.global_step
        if not self._waits:
            self._end(args, state, control, **kwargs)

    def _end(self, *args: Any, **kwargs: Any) -> None:
        self._waits = False
        self._tell("on_train_end", *args, **kwargs)
        if self._name == "wandb":
            self._tell("finish")
        self._off = True

    def _tell(self, event: str, *args: Any, **kwargs: Any) -> None:
        if self._off:
            return
        try:
            with _heard(self._name):
                target = self._tracker._wandb if event == "finish" else self._tracker
                getattr(target, event)(*args, **kwargs)
        except Exception as error:
            self._off = True
            warn(
                f"{self._name} is told nothing more, as it failed: {_words(error)}; "
                "metrics.jsonl goes on"
            )


_HINTS = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later; ",
    "mlflow": "set MLFLOW_TRACKING_URI to a server that answers, or to a file: or sqlite: path; ",
}


def _as_told(args: TrainingArguments, recipe: Recipe) -> TrainingArguments:
    """The arguments, which all trackers file as what the run is, with the recipe among them."""
    told = copy.copy(args)
    told.project = PROJECT
    plain = told.to_dict()
    told.to_dict = lambda: {**plain, "recipe": as_data(recipe)}
    return told


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What trackers are told in no other way; what the person has set goes before it."""
    wanted: Mapping[str, str] = {
        "WANDB_DIR": str(Path(folder).absolute()),
        "WANDB_PROJECT": PROJECT,
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
    }
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _heard(name: str) -> Iterator[None]:
    """What it prints is said as ours: no colours in a log, nothing beside a JSON document."""
    if name == "wandb":
        yield  # keeps the stdout it finds, for later, and writes to stderr itself
        return
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        lines = _ESCAPE.sub("", printed.getvalue()).splitlines()
        plain = [line.removeprefix(f"{name}:").strip(" *") for line in lines]
        say(*(f"tracking: {name}: {line}" for line in plain if line))


def _words(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
