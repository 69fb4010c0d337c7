"""The story of a run, from the preflight to the saved model."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from transformers import Trainer, TrainerCallback

from prefcli import preemption
from prefcli.checkpoints.disk import disk_errors_reported
from prefcli.checkpoints.push_to_hub import push
from prefcli.checkpoints.resume import clean_run_dir
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.checkpoints.run_record import RunRecord, now, own_settings
from prefcli.checkpoints.saved_choices import with_saved_choices
from prefcli.console import detail, is_main_process, say
from prefcli.errors import Problem, RecipeError
from prefcli.health import Monitor, RunContext
from prefcli.hub.commits import record_commits
from prefcli.memory.hardware import machine_of, this_machine
from prefcli.methods import Method
from prefcli.model import detect_device
from prefcli.model.adapter_merge import copy_adapter
from prefcli.model.distributed import check_launch_strategy
from prefcli.model.parts import sizes_as_dict
from prefcli.preflight.checks import CHECKS, checks_for, run_checks
from prefcli.preflight.context import PreflightContext, Prepared
from prefcli.recipe.defaults import resolve_defaults
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import format_lineage
from prefcli.text import first_line
from prefcli.training.callbacks.monitor_callback import MonitorCallback
from prefcli.training.callbacks.sampling_callback import make_samples
from prefcli.training.completions_file import CompletionsFile
from prefcli.training.final_model import save_model
from prefcli.training.finish import Outcome, best_step, failure_recorded, finish_run
from prefcli.training.held_out_rows import HeldOutRows
from prefcli.training.judge import judge_of_run
from prefcli.training.policy import announce, check_policy, placed, start_policy
from prefcli.training.simulation import SIMULATIONS
from prefcli.training.start_check import make_start_check
from prefcli.training.trainer import make_trainer

Resume = Literal["auto", "never"]


def train(
    recipe: Recipe,
    method: Method,
    resume: Resume | str = "auto",
    *,
    allow_unusual: bool = False,
    force_resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Outcome:
    """Run the recipe to its end: `model/` exists when this returns.

    resume: auto resumes from the last complete checkpoint of the same run, never refuses a folder
    that holds a run, and a path names the checkpoint.
    allow_unusual: accept values ten times outside the published ranges.
    force_resume: resume although the recipe, the data or the processes have changed, as far as
    checkpoints/resume_compat.py allows it.
    callbacks: added to the trainer's own.
    Raises RecipeError, DataError, GateError, DivergedError and PreemptedError; PushError once
    everything is saved.
    """
    recipe = resolve_defaults(with_saved_choices(recipe), method)
    context = PreflightContext(
        recipe,
        method,
        target=this_machine(recipe.launch),
        device=detect_device(),
        resume=resume,
        changes=ResumeDiff(force_resume, {"processes": world_size(), "strategy": strategy_here()}),
        allow_unusual=allow_unusual,
        simulations=SIMULATIONS,
    )
    run_checks(context, checks_for("output_dir"))
    folder = context.folder
    if context.status == "finished":
        say(f"{folder.path} is already finished; its model is in {folder.model}")
        push(recipe, folder)
        return Outcome.of(RunRecord.load(folder), already_finished=True)
    with (
        folder.lock() if is_main_process() else nullcontext(),
        disk_errors_reported(folder),
    ):
        outcome = _train(context, callbacks)
        push(recipe, folder)
        return outcome


def choose_launch(
    recipe: Recipe,
    method: Method,
    resume: Resume | str,
    processes: int,
    *,
    allow_unusual: bool = False,
) -> Recipe:
    """Return the recipe with the automatic settings of a run on several devices.

    They are chosen before the processes start, which share the prepared rows; a failed check stops
    the run here. processes: per machine. Raises RecipeError, DataError and GateError.
    """
    context = PreflightContext(
        recipe,
        method,
        target=machine_of(recipe.launch, processes),
        device=detect_device(),
        resume=resume,
        allow_unusual=allow_unusual,
        will_be_launched=True,
        simulations=SIMULATIONS,
    )
    for check in checks_for("architecture", "data_checks", "automatic"):
        report = check.run(context)
        if check.name == "automatic" and report is not None:
            say(*report.lines)
    return context.recipe


def _train(context: PreflightContext, callbacks: Sequence[TrainerCallback]) -> Outcome:
    folder, resumed = context.folder, context.checkpoint is not None
    start = context.recipe.model.name_or_path
    say(
        f"prefcli {context.method.name}: {start} on {context.device.name}",
        f"output: {folder.path} ({now()}, host {platform.node()}, process {os.getpid()})",
    )
    prepared = prepare(context)
    recipe = context.recipe  # without automatic settings
    method, has_eval = prepared.method, prepared.datasets.eval is not None
    record = _begin(context, prepared)
    with (
        failure_recorded(record),
        out_of_memory_reported(),
        disk_errors_reported(folder),
        preemption.preemption_as_error(),
        ExitStack() as scope,
    ):
        judge = scope.enter_context(judge_of_run(recipe, method, prepared.datasets.train))
        policy = start_policy(recipe, prepared, record, resumed=resumed)
        if not resumed:
            check_policy(recipe, prepared, policy, record)
        policy = placed(policy, prepared.device, strategy_here())
        monitor = MonitorCallback(folder, method, _health_monitor(recipe, prepared))
        trainer, record.effective = make_trainer(
            recipe,
            method,
            prepared.device,
            policy,
            prepared.tokenizer,
            prepared.datasets,
            eval_on_start=not resumed,
            recipe_overrides_checkpoint=context.changes.changes_optimizer,
            callbacks=[monitor, *callbacks],
            judge=judge,
        )
        check_launch_strategy(trainer.accelerator)
        start_check = make_start_check(trainer, recipe, method, record)
        if start_check is not None:
            trainer.add_callback(start_check)
        samples = make_samples(
            recipe,
            method,
            prepared.datasets.eval,
            prepared.tokenizer,
            policy.config,
            folder.samples,
            trainer,
        )
        if samples is not None:
            trainer.add_callback(samples)
            trainer.add_eval_metrics(samples.eval_metrics)
        if prepared.datasets.eval is not None and method.rows in ("pair", "labelled"):
            trainer.add_row_reader(HeldOutRows(prepared.datasets.eval, folder.held_out))
        if judge is not None:
            trainer.add_answer_reader(CompletionsFile(folder.completions))
        announce(recipe, method, trainer)
        record.save()
        _train_and_evaluate(trainer, monitor, context, has_eval=has_eval)
        trainer.exit_if_preempted()
        record.model = save_model(trainer, folder, recipe, prepared.device)
        return finish_run(recipe, method, record, trainer, monitor, samples)


@contextmanager
def out_of_memory_reported() -> Iterator[None]:
    """Raise RecipeError for a GPU that is full before the first step, or after the last."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            Problem(
                "the GPU is out of memory outside the training steps: "
                f"{str(error).splitlines()[0]}",
                path="launch.strategy",
                hint="train a LoRA adapter (lora.rank=16), shard the model over several GPUs "
                "(launch.strategy: fsdp2), or choose a smaller model; --dry-run predicts what "
                "each GPU needs",
                code="TRN023",
            )
        ) from None


def prepare(context: PreflightContext) -> Prepared:
    """Run the checks that are left, and clean the run directory once all have passed."""
    done = checks_for("output_dir")
    run_checks(context, [check for check in CHECKS if check not in done])
    clean_run_dir(context.folder, context.checkpoint)
    return Prepared.of(context)


def _begin(context: PreflightContext, prepared: Prepared) -> RunRecord:
    """Start the run directory and its record."""
    recipe, folder, changes = context.recipe, context.folder, context.changes
    record = RunRecord.begin(folder, recipe, prepared.method, prepared.device, changes.here)
    detail(f"lineage: {format_lineage(record.lineage, prepared.method.name)}")
    record.data = {split.name: split.as_dict() for split in prepared.datasets.splits}
    record.parts = sizes_as_dict(prepared.parts)
    record.settings = own_settings(recipe, prepared.method.name)
    record.plan = {"steps": prepared.plan.steps, "warmup_steps": prepared.plan.warmup_steps}
    before = None
    if context.checkpoint is not None:
        before = RunRecord.load(folder)
        record.resume_from(
            before, context.checkpoint, changes.accepted, same_rows=not changes.changes_rows
        )
    record.hub = record_commits(recipe, before.as_dict() if before is not None else {})
    if is_main_process():
        folder.start(recipe, prepared.method.name)
        record.save()
        copied = context.checkpoint is not None and folder.below.is_dir()
        if recipe.model.adapter == "stack" and not copied:
            copy_adapter(recipe.model.name_or_path, recipe.model.revision, folder.below)
    return record


def _health_monitor(recipe: Recipe, prepared: Prepared) -> Monitor:
    eval_split = prepared.datasets.eval
    facts = RunContext.of(
        prepared.method,
        steps=prepared.plan.steps,
        warmup=prepared.plan.warmup_steps,
        batch=recipe.training.global_batch_size,
        eval_rows=len(eval_split.rows) if eval_split is not None else 0,
        other_reference=recipe.reference.name_or_path is not None,
        mixes_sft=prepared.datasets.sft_mix is not None,
        frozen_head=recipe.lora is not None and not recipe.lora.modules_to_save,
        matched_neighbours=prepared.datasets.train.share_of("matched_neighbours"),
        fp16=prepared.device.half(recipe.model),
    )
    return Monitor(recipe.health.rules, facts)


def _train_and_evaluate(
    trainer: Trainer, monitor: MonitorCallback, context: PreflightContext, *, has_eval: bool
) -> None:
    """Train to the last step and evaluate it; with early stopping, return to the best step."""
    checkpoint = context.checkpoint
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        best = best_step(trainer)
        if best is not None:
            monitor.restore_eval(best)
        elif has_eval and monitor.last_eval_step != trainer.state.global_step:
            trainer.evaluate()
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            Problem(
                f"the GPU is out of memory at step {trainer.state.global_step}: "
                f"{first_line(error)}",
                path="training.per_device_train_batch_size",
                hint="lower it (gradient accumulation keeps the global batch), lower "
                "data.max_length, train a LoRA adapter, or set training.gradient_checkpointing: "
                "true",
                code="TRN023",
            )
        ) from None
    finally:
        monitor.close()
