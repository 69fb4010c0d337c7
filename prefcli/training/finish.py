"""The end of a run: its record, its report, the model card and the last lines of the log."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from transformers import Trainer

from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_record import RunRecord
from prefcli.console import detail, is_main_process, say, say_brief, warn
from prefcli.errors import DivergedError, InterruptedRunError, PreemptedError, PrefcliError
from prefcli.methods import Method
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import read_run
from prefcli.report.verdict import verdict
from prefcli.text import aligned, counted
from prefcli.training.callbacks.monitor_callback import MonitorCallback
from prefcli.training.callbacks.sampling_callback import SamplingCallback


@dataclass
class Outcome:
    """The result of a finished run, for scripts."""

    output_dir: str
    model: str
    already_finished: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    expected: dict[str, dict[str, float | bool]] = field(default_factory=dict)
    """The recipe's expected results: {metric: value, low, high, within}."""

    @classmethod
    def of(cls, record: RunRecord, *, already_finished: bool = False) -> Outcome:
        folder = record.folder
        return cls(
            str(folder.path),
            str(folder.model),
            already_finished=already_finished,
            metrics=(record.eval or {}).get("last", {}),
            expected=record.expected or {},
        )


def finish_run(
    recipe: Recipe,
    method: Method,
    record: RunRecord,
    trainer: Trainer,
    monitor: MonitorCallback,
    samples: SamplingCallback | None,
) -> Outcome:
    """Complete run.json, print the last lines, and write the report. The model is saved by now."""
    comparisons, lines = (
        recipe.expected.compare(method.name, monitor.last_eval) if recipe.expected else ({}, [])
    )
    record.end("finished")
    record.steps = trainer.state.global_step
    record.eval = {"first": monitor.first_eval, "last": monitor.last_eval}
    record.expected = {name: compared.as_dict() for name, compared in comparisons.items()}
    record.speed = trainer.context.packed_forward.as_dict()
    record.best_step = best_step(trainer)
    if is_main_process():
        record.save()
        _say_outcome(method, record.folder, trainer.state.global_step, monitor)
        say(*lines)
        detail(*trainer.context.packed_forward.closing_lines())
        say(*(samples.closing_lines() if samples is not None else []))
        write_report_and_card(record.folder, about=method.__doc__)
        say(*_next_commands(record.folder, method))
    if world_size() > 1:
        # The first process to end may stop the launcher while another still saves.
        trainer.accelerator.wait_for_everyone()
    return Outcome.of(record)


@contextmanager
def failure_recorded(record: RunRecord) -> Iterator[None]:
    """Write the error that stops a run to run.json and to its report."""
    try:
        yield
    except PreemptedError as error:
        interrupted = isinstance(error, InterruptedRunError)
        record.end("interrupted" if interrupted else "preempted", str(error))
        record.save()
        raise
    except PrefcliError as error:
        record.end("diverged" if isinstance(error, DivergedError) else "failed", str(error))
        with suppress(OSError):  # the disk may be what failed
            record.save()
        if is_main_process():
            write_report_and_card(record.folder)
        raise


def best_step(trainer: Trainer) -> int | None:
    """Return the step whose checkpoint early stopping has restored, if it has."""
    best = trainer.state.best_model_checkpoint
    return int(best.rpartition("-")[2]) if trainer.args.load_best_model_at_end and best else None


def write_report_and_card(folder: RunDir, *, about: str | None = None) -> None:
    """Write report.html and the model card once run.json is complete. For the main process.

    about: the method in one sentence; given if there is a model/ to write a card for.
    """
    try:
        # Imported here, so that a failed import can't cost a trained model either.
        from prefcli.report.model_card import write_card
        from prefcli.report.run_page import write_report

        if about is not None:
            write_card(folder.path, about)
        say(f"report: {write_report(folder.path)}")
    except Exception as error:  # a failed report must not cost a trained model
        warn(
            f"the report could not be written: {error or type(error).__name__}; "
            f"run `prefcli report {folder.path}` to try again"
        )


def _say_outcome(method: Method, folder: RunDir, steps: int, monitor: MonitorCallback) -> None:
    """Print the held-out metrics and the verdict: a table on a terminal, lines in a log."""
    outcome = verdict(read_run(folder.path))
    done = (
        f"done: {counted(steps, 'step')} of {method.name}{monitor.since} in {monitor.elapsed}; "
        f"the model is in {folder.model}"
    )
    table = [("held-out metric", "first", "last", ""), *(c.cells() for c in outcome.changes)]
    brief = [f"  {line}" for line in aligned(table, right=(1, 2))] if outcome.changes else []
    brief += [f"verdict: {line}" for line in filter(None, [outcome.judgement])]
    brief += [f"  {line}" for line in outcome.details]
    say_brief([done, *brief], [done, *(f"done: {line}" for line in outcome.lines())])


def _next_commands(folder: RunDir, method: Method) -> list[str]:
    name = shlex.quote(str(folder.path))
    use = (
        (f"prefcli score {name} DATA --reward-model {name} --output FILE", "to score responses")
        if method.head == "reward"
        else (f"prefcli chat {name}", "to talk to it")
    )
    return [
        "next:",
        *(
            f"  {line}"
            for line in aligned(
                [
                    use,
                    (f"prefcli report {name} OTHER_RUN", "to compare two runs"),
                ]
            )
        ),
    ]
