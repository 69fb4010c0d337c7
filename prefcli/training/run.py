"""The story of a run, top to bottom."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Trainer

from prefcli import preemption
from prefcli.checkpoints.disk_errors import disk_errors_reported
from prefcli.checkpoints.push_to_hub import check_push, push
from prefcli.checkpoints.resume import check_run_dir, find_resume_checkpoint
from prefcli.checkpoints.resume_compat import ResumeDiff, row_fingerprints
from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_metadata import first_entry, now
from prefcli.console import is_main_process, say
from prefcli.errors import DivergedError, PreemptedError, PrefcliError, Problem, RecipeError
from prefcli.health import Monitor, RunContext
from prefcli.hub.commits import record_commits
from prefcli.methods import Method
from prefcli.model import detect_device
from prefcli.model.adapter_merge import copy_adapter
from prefcli.model.device import refuse_many_gpus_without_launcher
from prefcli.model.distributed import check_launch_section, check_launch_strategy
from prefcli.preflight.disk_space import warn_if_disk_short
from prefcli.preflight.prepare import Prepared, prepare
from prefcli.recipe.defaults import resolve_defaults
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import format_lineage
from prefcli.training.callbacks.monitor_callback import MonitorCallback
from prefcli.training.callbacks.sampling_callback import SamplingCallback, make_samples
from prefcli.training.final_model import save_model
from prefcli.training.finish import write_report_and_card
from prefcli.training.policy import announce, check_policy, placed, start_policy
from prefcli.training.start_check import StartCheckCallback
from prefcli.training.summary import closing_lines
from prefcli.training.trainer import make_trainer

Resume = Literal["auto", "never"]

_OF_THE_RUN = ("started", "check_sft", "step_zero", "start_weights")
"""What a resume keeps of run.json."""


@dataclass
class Outcome:
    """What a script wants to know of a finished run."""

    output_dir: str
    model: str
    already_finished: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    expected: dict[str, dict[str, float | bool]] = field(default_factory=dict)
    """The recipe's published figures beside this run's: {metric: value, low, high, within}."""


def train(
    recipe: Recipe,
    method: Method,
    resume: Resume | str = "auto",
    *,
    allow_unusual: bool = False,
    force_resume: bool = False,
) -> Outcome:
    """Run the recipe to its end: `model/` exists when this returns.

    allow_unusual: values ten times outside the published bands are no error.
    resume: auto goes on from the last complete checkpoint of the same run, never refuses a folder
    that holds one, and a path names the checkpoint.
    force_resume: go on also where the recipe, the data or the processes have changed, as far as
    changes.py has it.
    Raises RecipeError, DataError, GateError, DivergedError and PreemptedError; PushError once
    everything is saved.
    """
    recipe = resolve_defaults(recipe, method)
    refuse_many_gpus_without_launcher()
    check_launch_section(recipe.launch)
    folder = RunDir(recipe.output_dir)
    changes = ResumeDiff(force_resume, {"processes": world_size(), "strategy": strategy_here()})
    status = check_run_dir(folder, recipe, method, resume, changes)
    if status == "finished":
        say(f"{folder.path} is finished already; its model is in {folder.model}")
        push(recipe, folder)
        run = folder.read_run()
        return Outcome(
            str(folder.path),
            str(folder.model),
            already_finished=True,
            metrics=run.get("eval", {}).get("last", {}),
            expected=run.get("expected", {}),
        )
    check_push(recipe)
    with (
        folder.lock() if is_main_process() else nullcontext(),
        disk_errors_reported(folder),
    ):
        checkpoint = find_resume_checkpoint(folder, resume, started=status is not None)
        outcome = _train(recipe, method, folder, checkpoint, changes, allow_unusual=allow_unusual)
        push(recipe, folder)
        return outcome


def _train(
    recipe: Recipe,
    method: Method,
    folder: RunDir,
    checkpoint: Path | None,
    changes: ResumeDiff,
    *,
    allow_unusual: bool,
) -> Outcome:
    device = detect_device()
    say(
        f"prefcli {method.name}: {recipe.model.name_or_path} on {device.name}",
        f"output: {folder.path} ({now()}, host {platform.node()}, process {os.getpid()})",
    )
    prepared = prepare(recipe, method, device, allow_unusual=allow_unusual)
    run = _begin(recipe, prepared, folder, checkpoint, changes)
    with (
        _record_failure(run, folder),
        disk_errors_reported(folder),
        preemption.preemption_as_error(),
    ):
        policy = start_policy(recipe, prepared, run, resumed=checkpoint is not None)
        if checkpoint is None:
            check_policy(recipe, prepared, policy, run)
        policy = placed(policy, prepared.device, strategy_here())
        watch = MonitorCallback(folder, prepared.method, _monitor(recipe, prepared))
        samples = make_samples(
            recipe,
            prepared.method,
            prepared.inputs.eval,
            prepared.tokenizer,
            policy.config,
            folder.samples,
        )
        step_zero = _step_zero(recipe, prepared.method, folder, run)
        eyes = [each for each in (watch, step_zero, samples) if each is not None]
        trainer, run["effective"] = make_trainer(
            recipe,
            prepared.method,
            prepared.device,
            policy,
            prepared.tokenizer,
            prepared.inputs,
            eval_on_start=checkpoint is None,
            callbacks=eyes,
            recipe_overrides_checkpoint=changes.retunes,
        )
        check_launch_strategy(recipe.launch, trainer.accelerator)
        for each in eyes[1:]:
            each.trainer = trainer
        announce(recipe, prepared.method, trainer)
        warn_if_disk_short(recipe, trainer.model, prepared.plan)
        if is_main_process():
            folder.write_run(run)
        _train_under_watch(trainer, watch, checkpoint, has_eval=prepared.inputs.eval is not None)
        trainer.exit_if_preempted()
        run["model"] = save_model(trainer, folder, recipe, prepared.device)
        return _end(recipe, prepared.method, folder, run, trainer, watch, samples)


def _begin(
    recipe: Recipe,
    prepared: Prepared,
    folder: RunDir,
    checkpoint: Path | None,
    changes: ResumeDiff,
) -> dict[str, Any]:
    """The folder, from now on this run's, and the first entry of run.json."""
    run = first_entry(recipe, prepared.method, prepared.device) | changes.here
    say(f"lineage: {format_lineage(run['lineage'], prepared.method.name)}")
    run["data"] = {split.name: split.as_dict() for split in prepared.inputs.splits}
    if checkpoint is not None:
        before = folder.read_run()
        # Which splits there are is the recipe's to say.
        known = row_fingerprints(before.get("data", {}))
        found = {
            name: words for name, words in row_fingerprints(run["data"]).items() if name in known
        }
        changes.judge(folder.path, {name: known[name] for name in found}, found)
        # The gate's verdict and the time of the start are the run's, not this process's.
        run |= {key: before[key] for key in _OF_THE_RUN if key in before}
        if changes.of_rows:
            run.pop("step_zero", None)  # figures of rows that are no longer there
        run["resumed"] = [
            *before.get("resumed", []),
            {"at": now(), "checkpoint": checkpoint.name, "anyway": changes.taken},
        ]
    run["hub"] = record_commits(recipe, folder.read_run() if checkpoint is not None else {})
    run["plan"] = {"steps": prepared.plan.steps, "warmup_steps": prepared.plan.warmup_steps}
    if is_main_process():
        folder.start(recipe, prepared.method.name)
        folder.write_run(run)
        begins = checkpoint is None or not folder.below.is_dir()
        if recipe.model.adapter == "stack" and begins:
            copy_adapter(recipe.model.name_or_path, recipe.model.revision, folder.below)
    return run


def _monitor(recipe: Recipe, prepared: Prepared) -> Monitor:
    context = RunContext.of(
        prepared.method,
        steps=prepared.plan.steps,
        warmup=prepared.plan.warmup_steps,
        batch=recipe.training.global_batch_size,
        eval_rows=len(prepared.inputs.eval.rows) if prepared.inputs.eval is not None else 0,
        other_reference=recipe.reference.name_or_path is not None,
        mixes_sft=prepared.inputs.sft_mix is not None,
        fp16=prepared.device.half(recipe.model),
    )
    return Monitor(recipe.health.rules, context)


def _step_zero(
    recipe: Recipe, method: Method, folder: RunDir, run: dict[str, Any]
) -> StartCheckCallback | None:
    def remember(figures: list[list[float]]) -> None:
        run["step_zero"] = figures
        folder.write_run(run)

    if not method.needs_reference:
        return None
    return StartCheckCallback(
        method,
        other=recipe.reference.name_or_path,
        known=run.get("step_zero"),
        on_done=remember,
    )


@contextmanager
def _record_failure(run: dict[str, Any], folder: RunDir) -> Iterator[None]:
    """What stopped the run stands in run.json and in its report, too."""
    try:
        yield
    except PreemptedError as error:
        run |= {"status": "preempted", "finished": now(), "why": str(error)}
        if is_main_process():
            folder.write_run(run)
        raise
    except PrefcliError as error:
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        run |= {"status": status, "finished": now(), "why": str(error)}
        if is_main_process():
            with suppress(OSError):  # the disk may be what failed
                folder.write_run(run)
            write_report_and_card(folder)
        raise


def _train_under_watch(
    trainer: Trainer, watch: MonitorCallback, checkpoint: Path | None, *, has_eval: bool
) -> None:
    """To the last evaluation, or, with early stopping, to the best one."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        best = _best_step(trainer)
        if best is not None:
            watch.take_back(best)
        elif has_eval and watch.last_eval_step != trainer.state.global_step:
            trainer.evaluate()
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            Problem(
                f"the GPU's memory is full at step {trainer.state.global_step}: "
                f"{str(error).splitlines()[0]}",
                path="training.per_device_train_batch_size",
                hint="lower it (accumulation keeps the global batch); or data.max_length, or train "
                "a lora; or write training.gradient_checkpointing: true",
            )
        ) from None
    finally:
        watch.close()


def _best_step(trainer: Trainer) -> int | None:
    """Of the checkpoint that early stopping has put back, if it has."""
    best = trainer.state.best_model_checkpoint
    return int(best.rpartition("-")[2]) if trainer.args.load_best_model_at_end and best else None


def _end(
    recipe: Recipe,
    method: Method,
    folder: RunDir,
    run: dict[str, Any],
    trainer: Trainer,
    watch: MonitorCallback,
    samples: SamplingCallback | None,
) -> Outcome:
    """The run's record, report and last lines; the model is saved by now."""
    compared, said = (
        recipe.expected.compare(method.name, watch.last_eval) if recipe.expected else ({}, [])
    )
    run |= {
        "status": "finished",
        "finished": now(),
        "steps": trainer.state.global_step,
        "eval": {"first": watch.first_eval, "last": watch.last_eval},
        "expected": {name: found.as_dict() for name, found in compared.items()},
        "speed": trainer.context.packed_forward.as_dict(),
    }
    if (best := _best_step(trainer)) is not None:
        run["best_step"] = best
    if is_main_process():
        folder.write_run(run)
        say(*closing_lines(method, folder, trainer.state.global_step, watch), *said)
        say(*trainer.context.packed_forward.closing_lines())
        say(*(samples.closing_lines() if samples is not None else []))
        write_report_and_card(folder, about=method.__doc__)
    if world_size() > 1:
        # A process that leaves early may take the launcher along while another still saves.
        trainer.accelerator.wait_for_everyone()
    return Outcome(
        str(folder.path), str(folder.model), metrics=watch.last_eval, expected=run["expected"]
    )
