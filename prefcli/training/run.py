"""The story of a run, top to bottom."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import Trainer

from prefcli.console import is_main_process, say, warn
from prefcli.errors import DivergedError, GateError, Problem, RecipeError
from prefcli.measure.check_sft import SftReport, measure_sft
from prefcli.methods import Method
from prefcli.model import (
    adapted,
    check_start,
    check_targets,
    load_policy,
    load_tokenizer,
    lora_config,
    machine,
    on_device,
    parameters_of,
    start_config,
)
from prefcli.model.machine import (
    refuse_many_gpus_without_launcher,
    strategy_here,
    world_size,
)
from prefcli.model.stacking import keep
from prefcli.model.weights import empty_model, fingerprint
from prefcli.recipe.combinations import check_combinations
from prefcli.recipe.schema import Recipe
from prefcli.recipe.unusual import check_unusual
from prefcli.training.arguments import learning_rate, notes, plan
from prefcli.training.folder import RunFolder
from prefcli.training.inputs import check_fit, check_reference, load_inputs
from prefcli.training.packages import check_packages
from prefcli.training.record import first_entry, lineage_in_words, now
from prefcli.training.remarks import token_remarks
from prefcli.training.resume import where_it_stands, where_to_start
from prefcli.training.saving import room_on_disk, save_model
from prefcli.training.sft_mix import mix_lines
from prefcli.training.step_zero import StepZero
from prefcli.training.summary import closing_lines
from prefcli.training.trainer import make_trainer
from prefcli.training.watch import Watch

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
    anchor: dict[str, dict[str, float | bool]] = field(default_factory=dict)
    """The recipe's published figures beside this run's: {metric: value, low, high, within}."""


def train(
    recipe: Recipe,
    method: Method,
    resume: Resume | str = "auto",
    *,
    allow_unusual: bool = False,
) -> Outcome:
    """Run the recipe to its end: `model/` exists when this returns.

    allow_unusual: values ten times outside the published bands are no error.
    resume: auto goes on from the last complete checkpoint of the same run, never refuses a folder
    that holds one, and a path names the checkpoint.
    Raises RecipeError, DataError, GateError and DivergedError.
    """
    refuse_many_gpus_without_launcher()
    folder = RunFolder(recipe.output_dir)
    status = where_it_stands(folder, recipe, method, resume)
    if status == "finished":
        say(f"{folder.path} is finished already; its model is in {folder.model}")
        run = folder.read_run()
        return Outcome(
            str(folder.path),
            str(folder.model),
            already_finished=True,
            metrics=run.get("eval", {}).get("last", {}),
            anchor=run.get("anchor", {}),
        )
    with folder.lock() if is_main_process() else nullcontext():
        return _train(
            recipe,
            method,
            folder,
            resume,
            started=status is not None,
            allow_unusual=allow_unusual,
        )


def _train(
    recipe: Recipe,
    method: Method,
    folder: RunFolder,
    resume: str,
    *,
    started: bool,
    allow_unusual: bool,
) -> Outcome:
    checkpoint = where_to_start(folder, resume, started=started)
    device = machine()
    say(
        f"prefcli {method.name}: {recipe.model.name_or_path} on {device.name}",
        f"output: {folder.path} ({now()}, host {platform.node()}, process {os.getpid()})",
    )
    check_packages(recipe)
    for warning in check_combinations(recipe, method, strategy_here()):
        warn(warning)
    tokenizer = load_tokenizer(recipe.model)
    check_start(recipe)
    config = start_config(recipe.model)
    check_fit(recipe, config, tokenizer)
    if method.needs_reference:
        check_reference(recipe, tokenizer)
    empty = empty_model(config)
    total, _ = parameters_of(empty)
    if recipe.lora is not None:
        adapted(empty, lora_config(recipe.lora))
    for warning in check_unusual(recipe, method, total, allowed=allow_unusual):
        warn(warning)
    inputs = load_inputs(recipe, method, tokenizer)
    method, settled = inputs.settle(method)
    for split in inputs.splits:
        say(*split.lines())
    say(*settled)
    chat = inputs.train.conversational
    for each in (*inputs.warnings, *token_remarks(recipe, tokenizer, conversational=chat)):
        warn(str(each))
    rows, exact = inputs.sequences(method, recipe.data.max_length)
    steps = plan(recipe.training, rows, exact=exact, has_eval=inputs.eval is not None)
    say(*steps.lines(recipe.training))
    say(*mix_lines(recipe, inputs.sft_mix, steps))

    run = first_entry(recipe, method, device)
    say(f"lineage: {lineage_in_words(run['lineage'], method)}")
    if checkpoint is not None:
        before = folder.read_run()
        # The gate's verdict and the time of the start are the run's, not this process's.
        run |= {key: before[key] for key in _OF_THE_RUN if key in before}
        run["resumed"] = [
            *before.get("resumed", []),
            {"at": now(), "checkpoint": checkpoint.name},
        ]
    run["data"] = {split.name: split.as_dict() for split in inputs.splits}
    if is_main_process():
        folder.start(recipe, method.name)
        folder.write_run(run)
        begins = checkpoint is None or not folder.below.is_dir()
        if recipe.model.adapter == "stack" and begins:
            keep(recipe.model.name_or_path, recipe.model.revision, folder.below)

    dtype = device.dtype(recipe.model, frozen=recipe.trains_adapter)
    policy = load_policy(recipe.model, dtype, recipe.seed)
    if recipe.trains_adapter or method.needs_reference:
        _same_start(policy, run, resumed=checkpoint is not None)
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, policy)
        say(f"lora: rank {recipe.lora.rank} on {len(targets)} layers")
    elif isinstance(policy, PeftModel):
        own = policy.peft_config["default"]
        say(
            f"lora: the adapter goes on, rank {own.r}, with its own dropout of {own.lora_dropout:g}"
            + (", so the first margins are not quite zero" if own.lora_dropout else "")
        )
    if method.needs_sft and recipe.check_sft.on_fail != "skip" and checkpoint is None:
        split = inputs.eval or inputs.train
        report = measure_sft(on_device(policy, device), tokenizer, split, recipe)
        run["check_sft"] = report.as_dict()
        _gate(report, recipe, folder, run)

    watch = Watch(folder.metrics, ties_at_start=method.needs_reference)
    step_zero = StepZero(
        method,
        other=recipe.reference.name_or_path,
        known=run.get("step_zero"),
        on_done=lambda figures: _remember(run, folder, figures),
    )
    with _noted(run, folder):
        trainer, run["effective"] = make_trainer(
            recipe,
            method,
            device,
            policy,
            tokenizer,
            inputs,
            eval_on_start=checkpoint is None,
            callbacks=[watch, step_zero] if method.needs_reference else [watch],
        )
    step_zero.trainer = trainer
    _announce(recipe, method, trainer)
    if is_main_process():
        folder.write_run(run)
    with room_on_disk(folder), _noted(run, folder):
        _train_under_watch(trainer, watch, checkpoint)
        best = _best_step(trainer)
        if best is None and inputs.eval and watch.last_eval_step != trainer.state.global_step:
            trainer.evaluate()
        save_model(trainer, folder, stacked=recipe.model.adapter == "stack")
    if best is not None:
        # model/ is not what the last evaluation saw.
        watch.last_eval = next(r for r in _evaluations(folder) if r["step"] == best)
        run["best_step"] = best
    run |= {
        "status": "finished",
        "finished": now(),
        "steps": trainer.state.global_step,
        "eval": {"first": watch.first_eval, "last": watch.last_eval},
    }
    compared, said = (
        recipe.anchor.compare(method.name, watch.last_eval) if recipe.anchor else ({}, [])
    )
    run["anchor"] = {name: found.as_dict() for name, found in compared.items()}
    if is_main_process():
        folder.write_run(run)
    say(*closing_lines(method, folder, trainer.state.global_step, watch), *said)
    if world_size() > 1:
        # A process that leaves early may take the launcher along while another still saves.
        trainer.accelerator.wait_for_everyone()
    return Outcome(
        str(folder.path), str(folder.model), metrics=watch.last_eval, anchor=run["anchor"]
    )


def _best_step(trainer: Trainer) -> int | None:
    """Of the checkpoint that early stopping has put back, if it has."""
    best = trainer.state.best_model_checkpoint
    return int(best.rpartition("-")[2]) if trainer.args.load_best_model_at_end and best else None


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    lines = folder.metrics.read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "eval_loss" in row]


def _remember(run: dict[str, Any], folder: RunFolder, figures: list[list[float]]) -> None:
    run["step_zero"] = figures
    folder.write_run(run)


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


def _announce(recipe: Recipe, method: Method, trainer: Trainer) -> None:
    total, trainable = parameters_of(trainer.model)
    say(f"model: {total:,} parameters, {trainable:,} trained ({trainable / total:.1%})")
    if method.needs_reference:
        say(f"reference: {_reference_in_words(recipe)}")
    rate = learning_rate(recipe, method)
    usual = "" if recipe.training.learning_rate is not None else f" ({method.name}'s usual value)"
    say(f"learning rate: {rate:g}{usual}, {recipe.training.lr_scheduler_type}")
    for note in notes(recipe, method):
        say(f"note: {note}")


def _reference_in_words(recipe: Recipe) -> str:
    if recipe.reference.name_or_path is not None:
        return recipe.reference.name_or_path
    how = "a frozen copy"
    if recipe.model.adapter == "continue":
        how = "with a frozen copy of its adapter"
    elif recipe.lora is not None:
        how = "with the new adapter off"
    return "the starting policy, " + ("precomputed" if recipe.reference.precompute else how)


def _same_start(policy: torch.nn.Module, run: dict[str, Any], *, resumed: bool) -> None:
    """An adapter on other weights than it began on would be another policy, without a word."""
    found = fingerprint(policy)
    if resumed and run.get("start_weights", found) != found:
        raise GateError(
            Problem(
                "the weights that this run started from have changed since then",
                path="model.name_or_path",
                hint="put them back, or start a new run in another output_dir",
            )
        )
    run["start_weights"] = found


@contextmanager
def _noted(run: dict[str, Any], folder: RunFolder) -> Iterator[None]:
    """What stopped the run stands in run.json, too."""
    try:
        yield
    except (DivergedError, GateError) as error:
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        run |= {"status": status, "finished": now(), "why": str(error)}
        if is_main_process():
            folder.write_run(run)
        raise


def _train_under_watch(trainer: Trainer, watch: Watch, checkpoint: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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
