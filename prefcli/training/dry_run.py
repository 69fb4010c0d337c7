"""A dry-run: every check of a run, and the memory of a simulated step, without loading weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli import first_failure
from prefcli.console import say
from prefcli.data import Split
from prefcli.data.run_datasets import first_row_view, shape_checks
from prefcli.errors import Problem
from prefcli.evaluation.sample_prompts import sample_prompts
from prefcli.memory.activations import Policy
from prefcli.memory.advice import Candidate, MemoryAdvice, advise, fewest_changes, refuse
from prefcli.memory.fake_step import StepPeaks, extrapolate_step, simulate_step
from prefcli.memory.gradient_checkpointing import choose
from prefcli.memory.hardware import Hardware, target_of
from prefcli.memory.model_info import describe_model
from prefcli.memory.prediction import Memory, predict
from prefcli.methods import Method
from prefcli.model import detect_device
from prefcli.packed_forward.supported_models import reason_against_config
from prefcli.preflight.checks import CHECKS
from prefcli.preflight.context import PreflightContext
from prefcli.preflight.result import DryRunResult
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line
from prefcli.training.mixins.context import TrainerContext
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixture
from prefcli.training.token_batches import choose_token_budget
from prefcli.training.trainer import trainer_class_of
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
    target = target or target_of()
    say(f"dry-run of prefcli {method.name}: {recipe.model.name_or_path}, for {target}")
    device = detect_device()
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
        will_be_launched=target.named
        or (recipe.launch is not None and not first_failure.launched()),
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
        recipe, info = self.context.recipe, self.context.model_info
        if info is not None:
            self.facts |= info.as_dict()
            recipe = self._with_automatic_settings()
        self._report_plan(recipe)
        if info is not None:
            self._simulate_step(recipe)

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
        row = first_row_view(context.recipe, context.method, context.tokenizer, datasets.train)
        say(*row.lines())
        self.facts["row"] = row.as_dict()

    def _report_plan(self, recipe: Recipe) -> None:
        """Report steps and tokens, and trl's configuration."""
        context = self.context
        plan, datasets = context.plan, context.datasets
        if plan is None or datasets is None:
            return
        tokens = datasets.tokens_per_epoch / plan.steps_per_epoch
        say(f"plan: {tokens:,.0f} tokens per step on average, {tokens * plan.steps:,.0f} in total")
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

    def _with_automatic_settings(self) -> Recipe:
        """Return the recipe with the settings that a run would choose on the target."""
        context = self.context
        recipe, method, target, info = (
            context.recipe,
            context.method,
            context.target,
            context.model_info,
        )
        assert info is not None
        reference_loaded = method.needs_reference and not recipe.reference.precompute
        checkpointing = choose(
            recipe,
            method,
            target.device,
            target.strategy,
            Policy(info.architectures.policy, info.architectures.adapter),
            length=self._longest,
            reference=info.sizes.reference if reference_loaded else 0,
            memory=target.gpu_memory,
            packed=self._packed_tokens(),
        )
        say(*checkpointing.lines())
        self.facts["gradient_checkpointing"] = checkpointing.on
        training = recipe.training.model_copy(
            update={
                "gradient_checkpointing": checkpointing.on,
                "optim": recipe.training.optimizer_on(target.device.kind),
            }
        )
        return recipe.model_copy(update={"training": training})

    @property
    def _longest(self) -> int:
        """Tokens of the longest row, or its limit if not all rows are read."""
        datasets = self.context.datasets
        if datasets is not None and not datasets.is_sample and not self.context.method.packs:
            return datasets.longest_row
        return self.context.recipe.data.max_length

    @property
    def _is_packed(self) -> bool:
        """Return whether all rows are known and will be scored without padding."""
        context = self.context
        recipe, datasets, info = context.recipe, context.datasets, context.model_info
        if info is None or datasets is None or datasets.is_sample or context.method.packs:
            return False
        attention = recipe.model.attn_implementation
        reason = reason_against_config(
            info.architectures.policy,
            "sdpa" if attention == "auto" else attention,
            context.target.strategy,
        )
        return reason is None and recipe.performance.shared_prefix != "off"

    def _packed_tokens(self) -> int | None:
        """Report how micro-batches are filled; return the tokens of the largest if it is packed."""
        context, plan, datasets = self.context, self.context.plan, self.context.datasets
        if plan is None or datasets is None:
            return None
        budget = choose_token_budget(
            context.recipe,
            context.method,
            datasets,
            world=plan.world_size,
            accumulation=plan.accumulation,
            packed=lambda: self._is_packed,
            kind=context.target.device.kind,
        )
        say(*budget.lines())
        if not self._is_packed:
            return None
        return datasets.packed(context.recipe, context.method, budget.tokens)

    def _simulate_step(self, recipe: Recipe) -> None:
        """Simulate a step on fake tensors, and look for changes that need less memory."""
        context, target, result = self.context, self.context.target, self.result
        start, info = context.start, context.model_info
        assert start is not None
        assert info is not None
        if world_size() > 1:
            # Under a launcher the trainer would wait for the other processes.
            self._not_simulated(
                "it needs a single process: run without a launcher, with --devices",
                unknown=target.gpu_memory is not None,
            )
            return
        # Without rows, kto assumes as many good as bad responses.
        method = context.method
        if context.datasets is None:
            method, _ = method.for_labels(1, 1)

        def memory_of(
            candidate: Candidate, simulate: Callable[..., StepPeaks] = simulate_run_step
        ) -> Memory:
            unchanged = candidate.recipe is recipe
            model = (
                info
                if unchanged
                else describe_model(candidate.recipe, start, info.architectures.policy)
            )
            return predict(
                candidate.recipe,
                candidate.method,
                model.architectures,
                model.sizes,
                candidate.target,
                length=min(self._longest, candidate.recipe.data.max_length),
                simulate=simulate,
            )

        planned = Candidate(recipe, method, target)
        try:
            memory = memory_of(planned)
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
            quick = functools.partial(memory_of, simulate=extrapolate_run_step)
            for step in advise(planned, memory, quick):
                say(f"advice: {step}")
                steps.append(step)
            cure = fewest_changes(planned, steps, quick, memory_of)
        self.facts["remedies"] = [step.as_dict() for step in steps]
        self.facts["cure"] = [step.change for step in cure]
        result.try_check(lambda: refuse(memory, target, cure))

    def _not_simulated(self, why: str, *, unknown: bool) -> None:
        """Report a step that is not simulated. unknown: so it is unknown whether the run works."""
        message = f"memory: the step could not be simulated ({why})"
        if unknown:
            self.result.unchecked.append(Problem(message, code="TRN029"))
        say(f"note: {message}")


def _make_trainer(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Split | None,
    **arguments: Any,
) -> Any:
    """Build the trainer of a run for a simulated step: its class, with its mixins."""
    mixture = None
    if demonstrations is not None and recipe.sft_mix is not None:
        mix = recipe.sft_mix
        stream = Demonstrations(demonstrations, tokenizer, recipe.data.max_length, recipe.seed)
        mixture = SftMixture(stream, mix.fraction, mix.weight)
    context = TrainerContext(method, sft_mix=mixture)
    return trainer_class_of(recipe, context)(context=context, **arguments)


simulate_run_step = functools.partial(simulate_step, make_trainer=_make_trainer)
"""`simulate_step` with the trainer of a run."""
extrapolate_run_step = functools.partial(extrapolate_step, make_trainer=_make_trainer)


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
