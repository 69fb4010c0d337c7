"""The stream of metrics: into the journal, past the health rules, onto the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.checkpoints.metrics_log import MetricsLog
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import is_screen, say
from prefcli.errors import DivergedError, Problem
from prefcli.health import Advice, Monitor
from prefcli.methods import Method
from prefcli.metrics import Row, is_eval
from prefcli.training.progress import PlainProgress, ProgressDisplay, RichLiveProgress
from prefcli.training.progress.eta import Pace, duration


class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """The main process writes, judges and shows; all of them stop when a rule says so."""

    def __init__(self, folder: RunDir, method: Method, monitor: Monitor) -> None:
        self._journal = MetricsLog(folder)
        self._method = method
        self._monitor = monitor
        self._screen: ProgressDisplay | None = None
        self._pace = Pace(0, 0, time.monotonic())
        self._first_step = 0
        self._announced = False
        self._batch = 0
        """Of the evaluation that goes on."""
        self.first_eval: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}
        self.last_eval_step = -1
        self._evals: dict[int, dict[str, float]] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._first_step = state.global_step
        self._pace = Pace(
            state.global_step,
            state.max_steps,
            time.monotonic(),
            eval_every=int(args.eval_steps) if args.eval_strategy == "steps" else None,
            save_every=int(args.save_steps) if args.save_strategy == "steps" else None,
        )
        earlier = self._journal.rows() if state.is_world_process_zero else []
        self._recall_evaluations(args, earlier)
        if not state.is_world_process_zero:
            return
        self._monitor.replay(earlier, self._journal.advice())
        watched = self._method.watched, self._method.watched_in_evaluations
        self._screen = (
            RichLiveProgress(self._method.name, *watched)
            if is_screen()
            else PlainProgress(*watched)
        )
        self._screen.open(self._pace, earlier)

    def _recall_evaluations(self, args: TrainingArguments, earlier: Sequence[Row]) -> None:
        """On every process: whether the last one has been done, all of them must know."""
        found = [{int(row["step"] or 0): _known(row) for row in earlier if is_eval(row)}]
        if args.world_size > 1:
            broadcast_object_list(found)
        (self._evals,) = found
        if self._evals:
            self.first_eval = next(iter(self._evals.values()))
            self.last_eval_step = max(self._evals)
            self.last_eval = self._evals[self.last_eval_step]

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._pace.begin(time.monotonic())

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._pace.end(state.global_step, time.monotonic())
        if self._screen is None:
            return
        self._screen.stepped()
        if self._pace.is_known and not self._announced and state.global_step < state.max_steps:
            self._announced = True
            say(self._pace.forecast(time.monotonic(), time.time()))

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        self._batch += 1
        if self._screen is not None:
            self._screen.evaluating(self._batch, _batches(eval_dataloader))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._pace.saved()
        if state.is_world_process_zero:
            say(f"saved checkpoint-{state.global_step}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "train_runtime" in figures:
            return  # transformers' own summary; ours is printed at the end
        row = {"step": state.global_step, "seconds": round(self._seconds, 3), **figures}
        if is_eval(row):
            self._batch = 0
            self._pace.evaluated(row.get("eval_runtime", 0.0))
            self.last_eval, self.last_eval_step = figures, state.global_step
            self._evals[state.global_step] = figures
            self.first_eval = self.first_eval or figures
        advices = self._tell(row) if state.is_world_process_zero else []
        self._stop_if_told(args, advices)

    def take_back(self, step: int) -> None:
        """The weights are again those of this step, so its evaluation is the last word."""
        self.last_eval = self._evals.get(step, {})

    @property
    def since(self) -> str:
        """Where this process took over a run, in words."""
        return f", {self._first_step} of them before this resume," if self._first_step else ""

    @property
    def elapsed(self) -> str:
        """Since training began."""
        return duration(self._seconds)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._pace.started

    def close(self) -> None:
        """Once training and its last evaluation are over, however they ended."""
        if self._screen is not None:
            self._screen.close()

    def _tell(self, row: dict[str, float]) -> list[Advice]:
        assert self._screen is not None
        self._journal.measured(row)
        self._screen.measured(row)
        advices = self._monitor.observe(row)
        for advice in advices:
            self._journal.advised(advice)
            self._screen.advised(advice)
        return advices

    def _stop_if_told(self, args: TrainingArguments, advices: list[Advice]) -> None:
        """By the main process's word, so that no process stops, or waits, alone."""
        told: list[Advice | None] = [next((a for a in advices if a.level == "stop"), None)]
        if args.world_size > 1:
            broadcast_object_list(told)
        advice = told[0]
        if advice is not None:
            raise DivergedError(
                Problem(
                    f"step {advice.step}: {advice.seen}: {advice.means}",
                    path=f"health.{advice.rule}",
                    hint=f"{advice.change}; no final model was written. If this rule is wrong "
                    f"here, health.{advice.rule}.level=warn goes on from the last checkpoint",
                )
            )


def _known(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if value is not None}


def _batches(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
