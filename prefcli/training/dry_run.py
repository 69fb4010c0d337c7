"""A dry-run: every check of a run, and the memory of a simulated step, without loading weights."""

from __future__ import annotations

from typing import Any

from prefcli import first_failure
from prefcli.console import say
from prefcli.data.run_datasets import first_row_view, shape_checks
from prefcli.errors import Problem
from prefcli.evaluation.sample_prompts import sample_prompts
from prefcli.memory.advice import Candidate, MemoryAdvice, advise, fewest_changes, refuse
from prefcli.memory.hardware import Hardware, target_of
from prefcli.memory.step_memory import StepMemory
from prefcli.methods import Method
from prefcli.model import detect_device
from prefcli.preflight.checks import CHECKS
from prefcli.preflight.context import PreflightContext
from prefcli.preflight.result import DryRunResult
from prefcli.recipe.defaults import plain_batch_size, resolve_defaults, with_batch_size
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line
from prefcli.training.judge import check_judge
from prefcli.training.simulation import SIMULATIONS
from prefcli.trl_integration.trl_args import (
    assert_args_applied,
    build,
    learning_rate,
    trl_options,
)

_ROWS_AFTER_ERROR = 1000
"""Rows of each source to read once a check has failed."""


def dry_run(
    recipe: Recipe,
    method: Method,
    resume: str = "auto",
    *,
    target: Hardware | None = None,
    allow_unusual: bool = False,
    sample: int | None = None,
) -> DryRunResult:
    """Run every check of a run and collect all errors; load no weights, write nothing.

    A check that fails does not stop the others; but from then on only some rows are read, and no
    advice on memory is computed.
    target: hardware of the run; by default what this process can use.
    sample: read this many rows of each source.
    """
    recipe = resolve_defaults(recipe, method)
    target = target or target_of(launch=recipe.launch)
    device = detect_device()
    without = "" if device.kind == "cuda" or target.named else ", though this machine has none"
    say(f"dry-run of prefcli {method.name}: {recipe.model.name_or_path}, for {target}{without}")
    untested = _untested_without_gpu(recipe, device.kind)
    say(*(f"note: {note}" for note in untested))
    context = PreflightContext(
        recipe,
        method,
        target,
        device,
        resume=resume,
        allow_unusual=allow_unusual,
        use_row_cache=False,
        sample=sample,
        sample_after_error=_ROWS_AFTER_ERROR,
        elsewhere=device.kind == "cpu" and (target.named or bool(untested)),
        will_be_launched=not first_failure.launched(),
        simulations=SIMULATIONS,
        reports_memory=True,
    )
    result = DryRunResult(needs_gpu=bool(untested))
    result.run_checks(context, CHECKS)
    _DryRun(context, result).report()
    return result


class _DryRun:
    """The reports of a dry-run beyond the checks of a run."""

    def __init__(self, context: PreflightContext, result: DryRunResult) -> None:
        self.context = context
        self.result = result
        self.facts = result.facts

    def report(self) -> None:
        """Report all facts that the checks have made available."""
        self._report_rows()
        context, step = self.context, self.context.step_memory
        recipe = context.recipe
        if recipe.training.per_device_train_batch_size == "auto":
            # The check that resolves it has failed.
            recipe = with_batch_size(recipe, plain_batch_size(recipe.training))
        planned = Candidate(recipe, context.method, context.target)
        if context.model_info is not None:
            self.facts |= context.model_info.as_dict()
        if step is not None:
            planned, checkpointing = step.resolved(planned)
            say(*step.token_budget_lines(planned), *checkpointing.lines())
            self.facts["gradient_checkpointing"] = checkpointing.on
        self._report_plan(planned.recipe)
        if step is not None:
            self._simulate_step(planned, step)

    def _report_rows(self) -> None:
        """Report the splits and show a row; without a tokenizer, check the shape of the rows."""
        context = self.context
        if context.tokenizer is None:
            for check in shape_checks(context.recipe, context.method):
                say(*filter(None, [self.result.try_check(check)]))
            return
        datasets, info = context.datasets, context.model_info
        if datasets is None:
            return
        for split in datasets.splits:
            self.facts[split.name] = split.as_dict()
        if info is not None:
            prompts = sample_prompts(
                context.recipe.samples,
                datasets.eval,
                context.tokenizer,
                info.architectures.policy,
            )
            say(*(f"samples: {note}" for note in (prompts.notes if prompts is not None else [])))
        if context.method.needs_judge:
            train = datasets.train
            self.result.try_check(lambda: check_judge(context.recipe, context.method, train))
        row = first_row_view(context.recipe, context.method, context.tokenizer, datasets.train)
        say(*row.lines())
        self.facts["row"] = row.as_dict()

    def _report_plan(self, recipe: Recipe) -> None:
        """Report steps and tokens, and trl's configuration."""
        context = self.context
        plan, datasets = context.plan, context.datasets
        if plan is None or datasets is None:
            return
        per_epoch = datasets.tokens_per_epoch * context.method.completions_per_prompt
        tokens = per_epoch / plan.steps_per_epoch
        most = "at most " if context.method.sampled_tokens else ""
        say(
            f"plan: {most}{tokens:,.0f} tokens per step on average, {tokens * plan.steps:,.0f} in "
            "total"
        )
        self.facts |= {
            "steps": plan.steps,
            "warmup_steps": plan.warmup_steps,
            "accumulation": plan.accumulation,
            "evaluations": plan.evaluations,
            "checkpoints": plan.checkpoints,
            "tokens_per_step": tokens,
            "tokens": tokens * plan.steps,
        }
        if context.disk_space is not None:
            self.facts["disk"] = context.disk_space.as_dict()
        if not self.result.problems:
            self.facts["effective"] = _effective_options(
                recipe, context.method, context.target.devices
            )
        say(f"learning rate: {learning_rate(recipe, context.method):g}")

    def _simulate_step(self, planned: Candidate, step: StepMemory) -> None:
        """Simulate a step on fake tensors, and look for changes that need less memory."""
        result, target = self.result, planned.target
        if world_size() > 1:
            # Under a launcher the trainer would wait for the other processes.
            self._not_simulated(
                "it needs a single process: run without a launcher, with --devices",
                unknown=target.gpu_memory is not None,
            )
            return
        try:
            memory = step.exact(planned)
        # A model may use operations without a fake version; the recipe is not at fault.
        except Exception as error:
            self._not_simulated(first_line(error), unknown=True)
            return
        say(*memory.lines(target))
        self.facts["memory"] = memory.as_dict(target)
        if memory.fits(target):
            return
        steps: list[MemoryAdvice] = []
        cure: list[MemoryAdvice] = []
        if not result.problems:  # other errors come first
            for advice in advise(planned, memory, step.quick):
                say(f"advice: {advice}")
                steps.append(advice)
            cure = fewest_changes(planned, steps, step.quick, step.exact)
        self.facts["remedies"] = [advice.as_dict() for advice in steps]
        self.facts["cure"] = [advice.change for advice in cure]
        result.try_check(lambda: refuse(memory, target, cure))

    def _not_simulated(self, why: str, *, unknown: bool) -> None:
        """Report a step that is not simulated. unknown: so it is unknown whether the run works."""
        message = f"memory: the step could not be simulated ({why})"
        if unknown:
            self.result.unchecked.append(Problem(message, code="TRN029"))
        say(f"note: {message}")


def _effective_options(recipe: Recipe, method: Method, world: int) -> dict[str, Any]:
    """Build trl's config as this machine would get it, and return the options it holds."""
    options = trl_options(recipe, method, detect_device(), world)
    config_class, _ = method.trl_classes()
    return assert_args_applied(options, build(options, config_class))


def _untested_without_gpu(recipe: Recipe, device: str) -> list[str]:
    """List the settings that a machine without a GPU cannot test."""
    if device != "cpu":
        return []
    settings = [
        f"model.{key}: {value}"
        for key in ("dtype", "attn_implementation")
        if (value := getattr(recipe.model, key))
        in ("bfloat16", "float16", "flash_attention_2", "flash_attention_3")
    ]
    if recipe.model.quantization is not None:
        settings.append(f"model.quantization: {recipe.model.quantization}")
    if recipe.training.needs_bitsandbytes:
        settings.append(f"training.optim: {recipe.training.optim}")
    return [f"not tested, as there is no GPU here: {', '.join(settings)}"] if settings else []
