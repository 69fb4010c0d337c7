"""Runs the trials of a sweep, one after the other or several at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefcli.errors import STOPPED, ExitCode, RecipeError
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.launcher.trials import Trial
from prefcli.report.run_data import Run, read_run
from prefcli.report.verdict import verdict
from prefcli.text import format_duration

_POLL_SECONDS = 0.2
_REDRAW_SECONDS = 2.0


@dataclass(frozen=True)
class Sweep:
    """The trials of a recipe, and how they are run."""

    trials: Sequence[Trial]
    recipe: str
    folder: Path
    flags: Sequence[str] = ()
    """Options of every run."""
    jobs: int = 1
    """Runs at once."""
    gpus: Sequence[str] = ()
    """Visible GPUs, which the runs share if there are several at once."""
    program: Sequence[str] = (sys.executable, "-m", "prefcli")

    def environment(self, slot: int) -> dict[str, str] | None:
        """Return the environment of one of the runs at once; None if there is one at a time."""
        if self.jobs == 1:
            return None
        share = {}
        if "OMP_NUM_THREADS" not in os.environ:
            share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        if self.gpus:
            own = self.gpus[slot :: self.jobs] or [self.gpus[slot % len(self.gpus)]]
            share["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return {**os.environ, **share}


@dataclass(frozen=True)
class _Process:
    trial: Trial
    slot: int
    process: subprocess.Popen[bytes]
    began: float


def run_trials(
    sweep: Sweep, report: Callable[[str], None], redraw: Callable[[], None]
) -> Iterator[tuple[Trial, int]]:
    """Run the trials that have not ended; yield each with its exit code.

    The output of a trial goes to NAME.log next to its folder. After a trial that was interrupted,
    preempted or killed, no other is started. redraw: is called now and then while trials run.
    """
    waiting = list(enumerate(sweep.trials, 1))
    running: list[_Process] = []
    drawn, stopped = 0.0, False
    signals = SignalForwarder()
    try:
        while running or (waiting and not stopped):
            while waiting and len(running) < sweep.jobs and not (stopped or signals.received):
                at, trial = waiting.pop(0)
                head = f"sweep: {at} of {len(sweep.trials)}: {trial.name}"
                if (ended := _ended_before(sweep.folder / trial.name)) is not None:
                    report(f"{head}: {ended.title}")
                    yield trial, ended.code
                    continue
                log = sweep.folder / f"{trial.name}.log"
                report(f"{head}: running, see {log}")
                slot = min(set(range(sweep.jobs)) - {one.slot for one in running})
                running.append(_start(sweep, trial, slot, log))
                signals.send_to(one.process.pid for one in running)
            stopped = stopped or bool(signals.received and not running)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                signals.send_to(other.process.pid for other in running)
                code = one.process.returncode
                stopped = stopped or code in STOPPED or code < 0
                report(_outcome(sweep, one, code))
                yield one.trial, code
            if running and time.monotonic() - drawn > _REDRAW_SECONDS:
                redraw()
                drawn = time.monotonic()
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        signals.restore()


@dataclass(frozen=True)
class _Ended:
    title: str
    code: int


def _ended_before(folder: Path) -> _Ended | None:
    """Return how an earlier start of the trial ended, if another one would end in the same way."""
    run = run_in(folder)
    if run is None or run.status not in ("finished", "diverged"):
        return None
    if run.status == "finished":
        return _Ended("finished before", ExitCode.DONE)
    return _Ended(
        f"{_start_of_line(verdict(run).title)}, earlier; remove {folder} to run it again",
        ExitCode.DIVERGED,
    )


def _start_of_line(title: str) -> str:
    return title[:1].lower() + title[1:]


def run_in(folder: Path) -> Run | None:
    """Read a trial's run folder; None if it has not started."""
    try:
        return read_run(folder)
    except RecipeError:
        return None


def _start(sweep: Sweep, trial: Trial, slot: int, log: Path) -> _Process:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*sweep.program, *trial.words(sweep.recipe, sweep.folder, sweep.flags)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=sweep.environment(slot),
            # Or Ctrl-C would reach it twice, from the terminal too, and it would not save.
            start_new_session=True,
        )
    return _Process(trial, slot, process, time.monotonic())


def _outcome(sweep: Sweep, one: _Process, code: int) -> str:
    """Return a line about a trial that has ended."""
    took = format_duration(time.monotonic() - one.began)
    run = run_in(sweep.folder / one.trial.name)
    if code in (ExitCode.DONE, ExitCode.DIVERGED, *STOPPED) and run is not None:
        return f"sweep: {one.trial.name}: {_start_of_line(verdict(run).title)} ({took})"
    line = _last_error(sweep.folder / f"{one.trial.name}.log")
    return f"sweep: {one.trial.name}: exit code {code} after {took}{f': {line}' if line else ''}"


def _last_error(log: Path) -> str:
    """Return the last error in a log without its hint, or nothing."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else ""
