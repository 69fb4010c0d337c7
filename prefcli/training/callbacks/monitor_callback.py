"""The stream of metrics: to metrics.jsonl, through the health rules, onto the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerState, TrainingArguments

from prefcli.checkpoints.metrics_log import MetricsLog
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import is_screen, say
from prefcli.errors import DivergedError, Problem
from prefcli.health import Advice, Monitor
from prefcli.methods import Method
from prefcli.metrics import Row, is_eval
from prefcli.text import format_duration
from prefcli.training.progress import PlainProgress, ProgressDisplay, RichLiveProgress
from prefcli.training.progress.eta import Pace


class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Writes, checks and shows metrics on the main process; all processes stop together."""

    def __init__(self, folder: RunDir, method: Method, monitor: Monitor) -> None:
        self._log = MetricsLog(folder)
        self._method = method
        self._monitor = monitor
        self._display: ProgressDisplay | None = None
        """On the main process only."""
        self._pace = Pace(0, 0, time.monotonic())
        self._first_step = 0
        self._forecast_shown = False
        self._eval_batch = 0
        self.first_eval: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}
        self.last_eval_step = -1
        self._evals: dict[int, dict[str, float]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        self._first_step = state.global_step
        self._pace = Pace(
            state.global_step,
            state.max_steps,
            time.monotonic(),
            eval_every=int(args.eval_steps) if args.eval_strategy == "steps" else None,
            save_every=int(args.save_steps) if args.save_strategy == "steps" else None,
        )
        rows = self._log.rows() if state.is_world_process_zero else []
        self._recall_evaluations(args, rows)
        if not state.is_world_process_zero:
            return
        self._monitor.replay(rows, self._log.advice())
        watched = self._method.watched, self._method.watched_in_evaluations
        self._display = (
            RichLiveProgress(self._method.name, *watched)
            if is_screen()
            else PlainProgress(*watched)
        )
        self._display.start(self._pace, rows)

    def _recall_evaluations(self, args: TrainingArguments, rows: Sequence[Row]) -> None:
        """Share earlier evaluations: all processes must know if the last one has been done."""
        evals = [{int(row["step"] or 0): _finite(row) for row in rows if is_eval(row)}]
        if args.world_size > 1:
            broadcast_object_list(evals)
        (self._evals,) = evals
        if self._evals:
            self.first_eval = next(iter(self._evals.values()))
            self.last_eval_step = max(self._evals)
            self.last_eval = self._evals[self.last_eval_step]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._pace.begin(time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._pace.end(state.global_step, time.monotonic())
        if self._display is None:
            return
        self._display.show_step()
        if self._pace.is_known and not self._forecast_shown and state.global_step < state.max_steps:
            self._forecast_shown = True
            say(self._pace.forecast(time.monotonic(), time.time()))

    def on_prediction_step(self, *_: Any, eval_dataloader: Any = None, **__: Any) -> None:
        self._eval_batch += 1
        if self._display is not None:
            self._display.show_eval_batch(self._eval_batch, _length(eval_dataloader))

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._pace.saved()
        if state.is_world_process_zero:
            say(f"saved checkpoint-{state.global_step}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: Any,
        logs: dict[str, Any] | None = None,
        **__: Any,
    ) -> None:
        metrics = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if "train_runtime" in metrics:
            return  # transformers' own summary
        row = {"step": state.global_step, "seconds": round(self._seconds, 3), **metrics}
        if is_eval(row):
            self._eval_batch = 0
            self._pace.evaluated(row.get("eval_runtime", 0.0))
            self.last_eval, self.last_eval_step = metrics, state.global_step
            self._evals[state.global_step] = metrics
            self.first_eval = self.first_eval or metrics
        advice = self._record(row) if state.is_world_process_zero else []
        self._stop_on(advice, args)

    def restore_eval(self, step: int) -> None:
        """Use the evaluation of this step as the last, since its weights were restored."""
        self.last_eval = self._evals.get(step, {})

    @property
    def since(self) -> str:
        """The step of the resume, as part of a sentence."""
        return f", {self._first_step} of them before this resume," if self._first_step else ""

    @property
    def elapsed(self) -> str:
        """The time since training began."""
        return format_duration(self._seconds)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._pace.started

    def close(self) -> None:
        """Release the terminal after training and its last evaluation, however they ended."""
        if self._display is not None:
            self._display.stop()

    def _record(self, row: dict[str, float]) -> list[Advice]:
        assert self._display is not None
        self._log.measured(row)
        self._display.show_row(row)
        advice = self._monitor.observe(row)
        for entry in advice:
            self._log.advised(entry)
            self._display.show_advice(entry)
        return advice

    def _stop_on(self, advice: Sequence[Advice], args: TrainingArguments) -> None:
        """Stop all processes if the main process has advice of the level stop."""
        stops: list[Advice | None] = [next((a for a in advice if a.level == "stop"), None)]
        if args.world_size > 1:
            broadcast_object_list(stops)
        (stop,) = stops
        if stop is not None:
            raise DivergedError(
                Problem(
                    f"step {stop.step}: {stop.seen}: {stop.means}",
                    code="TRN100",
                    path=f"health.{stop.rule}",
                    hint=f"{stop.change}; no final model was written. If the rule is wrong here, "
                    f"continue from the last checkpoint with health.{stop.rule}.level=warn",
                )
            )


def _finite(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if value is not None}


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
