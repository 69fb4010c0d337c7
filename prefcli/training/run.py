"""The story of a run, top to bottom."""

from __future__ import annotations

import os
import platform
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Trainer

from prefcli.console import is_main_process, say, warn
from prefcli.errors import DivergedError, GateError, Problem, RecipeError
from prefcli.measure.check_sft import SftReport, gate_split, measure_sft
from prefcli.methods import Method
from prefcli.model import (
    check_targets,
    load_config,
    load_model,
    load_tokenizer,
    machine,
    parameters_of,
)
from prefcli.model.machine import refuse_many_gpus_without_launcher, world_size
from prefcli.recipe.schema import Recipe
from prefcli.training.arguments import learning_rate, notes, plan
from prefcli.training.folder import RunFolder
from prefcli.training.inputs import check_fit, load_inputs
from prefcli.training.packages import check_packages
from prefcli.training.record import first_entry, now
from prefcli.training.resume import where_it_stands, where_to_start
from prefcli.training.saving import room_on_disk, save_model
from prefcli.training.summary import closing_lines
from prefcli.training.trainer import make_trainer
from prefcli.training.watch import Watch

Resume = Literal["auto", "never"]


@dataclass
class Outcome:
    """What a script wants to know of a finished run."""

    output_dir: str
    model: str
    already_finished: bool = False
    metrics: dict[str, float] = field(default_factory=dict)


def train(recipe: Recipe, method: Method, resume: Resume | str = "auto") -> Outcome:
    """Run the recipe to its end: `model/` exists when this returns.

    resume: auto goes on from the last complete checkpoint of the same run, never refuses a folder
    that holds one, and a path names the checkpoint.
    Raises RecipeError, DataError, GateError and DivergedError.
    """
    refuse_many_gpus_without_launcher()
    folder = RunFolder(recipe.output_dir)
    status = where_it_stands(folder, recipe, method, resume)
    if status == "finished":
        say(f"{folder.path} is finished already; its model is in {folder.model}")
        last = folder.read_run().get("eval", {}).get("last", {})
        return Outcome(str(folder.path), str(folder.model), already_finished=True, metrics=last)
    with folder.lock() if is_main_process() else nullcontext():
        return _train(recipe, method, folder, resume, started=status is not None)


def _train(
    recipe: Recipe, method: Method, folder: RunFolder, resume: str, *, started: bool
) -> Outcome:
    checkpoint = where_to_start(folder, resume, started=started)
    device = machine()
    say(
        f"prefcli {method.name}: {recipe.model.name_or_path} on {device.name}",
        f"output: {folder.path} ({now()}, host {platform.node()}, process {os.getpid()})",
    )
    check_packages(recipe)
    tokenizer = load_tokenizer(recipe.model)
    check_fit(recipe, load_config(recipe.model), tokenizer)
    inputs = load_inputs(recipe, method, tokenizer)
    method, settled = inputs.settle(method)
    for split in inputs.splits:
        say(*split.lines())
    say(*settled)
    rows, exact = inputs.sequences(method, recipe.data.max_length)
    steps = plan(recipe.training, rows, exact=exact, has_eval=inputs.eval is not None)
    say(*steps.lines(recipe.training))
    say(*inputs.uneven_eval(recipe.training.eval_batch_size * world_size()))

    run = first_entry(recipe, method, device)
    if checkpoint is not None:
        before = folder.read_run()
        # The gate's verdict and the time of the start are the run's, not this process's.
        run |= {key: before[key] for key in ("started", "check_sft") if key in before}
        run["resumed"] = [
            *before.get("resumed", []),
            {"at": now(), "checkpoint": checkpoint.name},
        ]
    run["data"] = {split.name: split.as_dict() for split in inputs.splits}
    if is_main_process():
        folder.start(recipe, method.name)
        folder.write_run(run)

    policy = load_model(recipe.model, device.dtype(recipe.model, recipe.lora), recipe.seed)
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, policy)
        say(f"lora: rank {recipe.lora.rank} on {len(targets)} layers")
    if method.needs_sft and recipe.check_sft.on_fail != "skip" and checkpoint is None:
        split = inputs.eval or gate_split(recipe, method.rows, tokenizer)
        report = measure_sft(policy.to(device.kind), tokenizer, split, recipe)
        run["check_sft"] = report.as_dict()
        _gate(report, recipe, folder, run)

    watch = Watch(folder.metrics)
    trainer, run["effective"] = make_trainer(
        recipe,
        method,
        device,
        policy,
        tokenizer,
        inputs,
        eval_on_start=checkpoint is None,
        callbacks=[watch],
    )
    _announce(recipe, method, trainer, resumed=checkpoint is not None)
    if is_main_process():
        folder.write_run(run)
    with room_on_disk(folder):
        _train_under_watch(trainer, watch, folder, run, checkpoint)
        if inputs.eval is not None and watch.last_eval_step != trainer.state.global_step:
            trainer.evaluate()
        save_model(trainer, folder)
    run |= {
        "status": "finished",
        "finished": now(),
        "steps": trainer.state.global_step,
        "eval": {"first": watch.first_eval, "last": watch.last_eval},
    }
    if is_main_process():
        folder.write_run(run)
    say(*closing_lines(method, folder, trainer.state.global_step, watch))
    return Outcome(str(folder.path), str(folder.model), metrics=watch.last_eval)


def _gate(report: SftReport, recipe: Recipe, folder: RunFolder, run: dict[str, Any]) -> None:
    say(*report.lines())
    if report.passed:
        return
    if recipe.check_sft.on_fail == "warn":
        warn("going on, because check_sft.on_fail is warn")
        return
    run["status"] = "failed"
    if is_main_process():
        folder.write_run(run)
    raise GateError(
        Problem(
            f"perplexity {report.perplexity:.1f} is above {report.max_perplexity:g}",
            path="check_sft.max_perplexity",
            hint="run `prefcli sft` on this kind of text first; or train anyway with "
            "check_sft.on_fail=warn",
        )
    )


def _announce(recipe: Recipe, method: Method, trainer: Trainer, *, resumed: bool) -> None:
    total, trainable = parameters_of(trainer.model)
    say(f"model: {total:,} parameters, {trainable:,} trained ({trainable / total:.1%})")
    if method.needs_reference:
        say(
            "reference: the starting policy, "
            + ("with the adapter off" if recipe.lora is not None else "a frozen copy")
        )
    rate = learning_rate(recipe, method)
    usual = "" if recipe.training.learning_rate is not None else f" ({method.name}'s usual value)"
    say(f"learning rate: {rate:g}{usual}, {recipe.training.lr_scheduler_type}")
    for note in notes(recipe, method):
        say(f"note: {note}")
    start = method.start_loss()
    if start is not None and not resumed:
        say(f"loss: starts at {start:.4f}, where policy and reference agree")


def _train_under_watch(
    trainer: Trainer, watch: Watch, folder: RunFolder, run: dict[str, Any], checkpoint: Path | None
) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except DivergedError:
        run |= {"status": "diverged", "finished": now()}
        if is_main_process():
            folder.write_run(run)
        raise
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            Problem(
                f"the GPU's memory is full at step {trainer.state.global_step}: "
                f"{str(error).splitlines()[0]}",
                path="training.per_device_train_batch_size",
                hint="lower it (accumulation keeps the global batch); or data.max_length, or train "
                "a lora; keep training.gradient_checkpointing on",
            )
        ) from None
    finally:
        watch.close()
