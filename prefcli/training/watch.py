"""The stream of metrics: into metrics.jsonl, onto the screen, and a stop when it is lost."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.console import say, stream
from prefcli.errors import DivergedError, Problem

# What a reader of a log looks for, in this order; the rest is in metrics.jsonl.
_SHOWN = (
    "loss",
    "preference_loss",
    "sft_mix/loss",
    "grad_norm",
    "learning_rate",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "kl",
    "nll_loss",
    "log_odds_chosen",
)
_TIES = ("rewards/margins", "rewards/accuracies")
_MUST_BE_FINITE = ("loss", "grad_norm", "eval_loss")


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """One object a logging step in metrics.jsonl, one plain line (or a bar) for the reader."""

    def __init__(self, metrics: Path, *, ties_at_start: bool) -> None:
        """ties_at_start: before the first step policy and reference agree on every pair."""
        self._metrics = metrics
        self._hidden_at_start = _TIES if ties_at_start else ()
        self._started = time.monotonic()
        self._first_step = 0
        self._first_done = self._started
        self._progress: Progress | None = None
        self._task: Any = None
        self.first_eval = _first_eval(metrics)
        self.last_eval: dict[str, float] = {}
        self.last_eval_step = -1

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._started = time.monotonic()
        self._first_step = state.global_step
        if state.is_world_process_zero and stream().isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=stream()),
            )
            self._task = self._progress.add_task(
                "step", total=state.max_steps, completed=state.global_step
            )
            self._progress.start()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step == self._first_step + 1:
            self._first_done = time.monotonic()
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            self._print(f"saved checkpoint-{state.global_step}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        row = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "train_runtime" in row:
            return  # transformers' own summary; ours is printed at the end
        if any(key.startswith("eval_") for key in row):
            self.last_eval, self.last_eval_step = row, state.global_step
            self.first_eval = self.first_eval or row
        if state.is_world_process_zero:
            self._write(state.global_step, row)
            self._show(state, row)
        # float16's loss scaling overflows now and then by design, and skips that step.
        checked = [key for key in _MUST_BE_FINITE if key != "grad_norm" or not args.fp16]
        lost = [key for key in checked if not math.isfinite(row.get(key, 0.0))]
        if lost:
            # Every rank logs the same reduced values, so every rank stops here.
            raise DivergedError(
                Problem(
                    f"{lost[0]} is {row[lost[0]]} at step {state.global_step}",
                    place=str(self._metrics),
                    hint="lower training.learning_rate, or look for broken rows with --dry-run; "
                    "no final model was written",
                )
            )

    @property
    def since(self) -> str:
        """Where this process took over a run, in words."""
        return f", {self._first_step} of them before this resume," if self._first_step else ""

    @property
    def elapsed(self) -> str:
        """Since training began."""
        return duration(time.monotonic() - self._started)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, step: int, row: dict[str, float]) -> None:
        entry = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **row}
        with self._metrics.open("a", encoding="utf-8") as file:
            # NaN is no JSON: a lost value is written as null.
            finite = {k: v if math.isfinite(v) else None for k, v in entry.items()}
            file.write(json.dumps(finite) + "\n")

    def _show(self, state: TrainerState, row: dict[str, float]) -> None:
        prefix = "eval_" if any(key.startswith("eval_") for key in row) else ""
        hidden = self._hidden_at_start if state.global_step == 0 else ()
        shown = [
            f"{prefix}{name} {_figure(name, row[prefix + name])}"
            for name in _SHOWN
            if row.get(prefix + name) is not None and name not in hidden
        ]
        if prefix + "mean_token_accuracy" in row and prefix + "rewards/margins" not in row:
            shown.append(f"{prefix}token_accuracy {row[prefix + 'mean_token_accuracy']:.4f}")
        if not shown:
            return
        width = len(str(state.max_steps))
        line = f"step {state.global_step:>{width}}/{state.max_steps}  {'  '.join(shown)}"
        if not prefix and self._progress is None:
            line += f"  eta {self._eta(state)}"
        self._print(line)

    def _print(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(line)

    def _eta(self, state: TrainerState) -> str:
        """From the steps after the first, which pays for evaluation and warm caches."""
        done = state.global_step - self._first_step - 1
        if done < 1:
            return "-"
        seconds = (time.monotonic() - self._first_done) / done
        return duration(seconds * (state.max_steps - state.global_step))


def _first_eval(metrics: Path) -> dict[str, float]:
    """What a run that is resumed measured at its very start."""
    if not metrics.exists():
        return {}
    rows = map(json.loads, metrics.read_text("utf-8").splitlines())
    return next((row for row in rows if "eval_loss" in row), {})


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figure(name: str, value: float) -> str:
    if name == "learning_rate":
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def quiet_libraries() -> None:
    """Bars and advice meant for other programs stay out of the log."""
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not stream().isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by trl for a bar of its own
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
