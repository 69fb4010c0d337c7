"""Everything short of training: what would stop this recipe is found before a GPU is booked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.checkpoints.push_to_hub import check_push_offline
from prefcli.checkpoints.resume import check_run_dir
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import say
from prefcli.data.run_datasets import (
    RunDatasets,
    check_model_fit,
    check_reference,
    first_row_view,
    read_run_datasets,
    shape_checks,
)
from prefcli.errors import DataError, Problem
from prefcli.memory.activations import Policy
from prefcli.memory.advice import Candidate, Remedy, fewest, refuse, remedies
from prefcli.memory.fake_step import StepPeaks, estimated_run, fake_run
from prefcli.memory.gradient_checkpointing import choose
from prefcli.memory.hardware import Hardware, target_of
from prefcli.memory.model_info import ModelInfo, size
from prefcli.memory.prediction import Memory, predict
from prefcli.methods import Method
from prefcli.model import check_model, detect_device, load_base_config, load_tokenizer
from prefcli.model.base_model import ModelSource, reference_model, resolve_model
from prefcli.model.loading import check_weights
from prefcli.packed_forward.supported_models import reason_against_config
from prefcli.preflight.collator_check import check_eos_trained
from prefcli.preflight.disk_space import check_disk, disk
from prefcli.preflight.requirements import check_packages
from prefcli.preflight.result import DryRunResult
from prefcli.preflight.tokenizer_warnings import tokenizer_warnings
from prefcli.preflight.training_plan import sft_mix_lines
from prefcli.recipe.compatibility import check_combinations
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.published_ranges import check_unusual
from prefcli.recipe.schema import Recipe
from prefcli.training.callbacks.sampling_callback import questions
from prefcli.trl_integration.trl_args import (
    accumulate,
    assert_args_applied,
    build,
    learning_rate,
    notes,
    plan,
    trl_options,
)

_FEW = 1000
"""Rows of each source that are looked at where something else is wrong already."""


def dry_run(
    recipe: Recipe,
    method: Method,
    resume: str = "auto",
    *,
    target: Hardware | None = None,
    allow_unusual: bool = False,
    sample: int | None = None,
) -> DryRunResult:
    """Look at everything, from cheap to dear; load no weights, train nothing, write nothing.

    What fails does not keep the rest from being looked at; but once something has, the rows are
    looked at in part, and no remedies are sought.
    target: where the run is to take place; left out, as many devices as this process knows of.
    sample: look at so many rows of each source only.
    """
    target = target or target_of()
    say(f"dry-run of prefcli {method.name}: {recipe.model.name_or_path}, for {target}")
    run = _DryRun(recipe, method, target, DryRunResult())
    run.look_at_files(resume)
    run.look_at_model(allow_unusual=allow_unusual)
    run.look_at_rows(sample)
    run.choose()
    run.count()
    run.rehearse()
    return run.found


class _DryRun:
    """The checks in their order, and what they know of each other."""

    def __init__(
        self, recipe: Recipe, method: Method, target: Hardware, found: DryRunResult
    ) -> None:
        self.recipe = recipe
        self.method = method
        """Settled once the rows are read."""
        self.target = target
        self.found = found
        self.start: ModelSource | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.sized: ModelInfo | None = None
        self.inputs: RunDatasets | None = None

    def look_at_files(self, resume: str) -> None:
        """Packages, the run folder, weights; settings that do not go together."""
        recipe, found = self.recipe, self.found
        folder = RunDir(recipe.output_dir)
        status = found.try_check(lambda: check_run_dir(folder, recipe, self.method, resume))
        if status is not None:
            say(f"output: {recipe.output_dir} holds this run ({status})")
        # Without a GPU here, what a GPU needs is another machine's matter, and noted.
        here = detect_device().kind
        found.try_check(lambda: check_push_offline(recipe))
        found.try_check(lambda: check_packages(recipe, gpu_too=here == "cuda"))
        self.start = start = found.try_check(lambda: check_model(recipe.model, recipe.lora))
        if start is not None:
            found.try_check(lambda: check_weights(start.base))
        named = (
            reference_model(recipe.reference, recipe.model) if self.method.needs_reference else None
        )
        if named is not None:
            other = found.try_check(lambda: resolve_model(named, where="reference"))
            if other is not None:
                found.try_check(lambda: check_weights(other.base, where="reference"))
        found.collect_warnings(
            lambda: check_combinations(recipe, self.method, self.target.strategy)
        )
        untried = _untried(recipe, here)
        found.needs_gpu = bool(untried)
        for note in [*notes(recipe, self.method), *untried]:
            say(f"note: {note}")

    def look_at_model(self, *, allow_unusual: bool) -> None:
        """Config, tokenizer, what is trained; settings beside what is published for this size."""
        recipe, method, found, start = self.recipe, self.method, self.found, self.start
        self.tokenizer = tokenizer = found.try_check(lambda: load_tokenizer(recipe.model))
        config = (
            found.try_check(lambda: load_base_config(recipe.model)) if start is not None else None
        )
        if config is not None and tokenizer is not None:
            found.try_check(lambda: check_model_fit(recipe, config, tokenizer))
            if method.needs_reference:
                found.try_check(lambda: check_reference(recipe, tokenizer))
        if config is None or start is None:
            return
        self.sized = sized = found.try_check(lambda: size(recipe, start, config))
        if sized is None:
            return
        found.facts |= sized.as_dict()
        say(*sized.lines(tokenizer))
        parameters = sized.parameters
        found.collect_warnings(
            lambda: check_unusual(recipe, method, parameters, allowed=allow_unusual)
        )

    def look_at_rows(self, sample: int | None) -> None:
        """All rows, tokenised and counted, and one of them shown."""
        recipe, found, tokenizer = self.recipe, self.found, self.tokenizer
        if tokenizer is None:
            for look in shape_checks(recipe, self.method):
                say(*filter(None, [found.try_check(look)]))
            return
        if found.problems and sample is None:
            sample = _FEW
            say(f"data: of each source {_FEW} rows at most, until the rest of the recipe is right")
        self.inputs = inputs = found.try_check(
            lambda: read_run_datasets(recipe, self.method, tokenizer, sample=sample)
        )
        if inputs is None:
            return
        self.method, settled = inputs.resolve_from_data(self.method)
        say(*settled)
        for split in inputs.splits:
            say(*split.lines())
            found.facts[split.name] = split.as_dict()
        warnings, errors = inputs.judge(recipe.data.checks)
        found.collect_warnings(lambda: warnings)
        if errors:
            found.fail(DataError(errors))
        chat = inputs.train.conversational
        ends = inputs.ends
        found.collect_warnings(
            lambda: tokenizer_warnings(recipe, tokenizer, conversational=chat, ends=ends)
        )
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            found.try_check(lambda: check_eos_trained(self.method, tokenizer, inputs.train))
        if self.sized is not None:
            asked = questions(recipe, inputs.eval, tokenizer, self.sized.known.policy)
            say(*(f"samples: {note}" for note in (asked.notes if asked is not None else [])))
        shown = first_row_view(recipe, self.method, tokenizer, inputs.train)
        say(*shown.lines())
        found.facts["row"] = shown.as_dict()

    def choose(self) -> None:
        """What a run chooses by itself, as it would on the target; the recipe has it from here."""
        if self.sized is None:
            return
        sized, target, training = self.sized, self.target, self.recipe.training
        beside = self.method.needs_reference and not self.recipe.reference.precompute
        checkpointing = choose(
            self.recipe,
            self.method,
            target.device,
            target.strategy,
            Policy(sized.known.policy, sized.known.adapter),
            length=self.longest,
            reference=sized.sizes.reference if beside else 0,
            memory=target.gpu_memory,
            packed=self.packed,
        )
        say(*checkpointing.lines())
        self.found.facts["gradient_checkpointing"] = checkpointing.on
        settled = training.model_copy(
            update={
                "gradient_checkpointing": checkpointing.on,
                "optim": training.optimizer_on(target.device.kind),
            }
        )
        self.recipe = self.recipe.model_copy(update={"training": settled})

    @property
    def longest(self) -> int:
        """Tokens of the longest row, as far as the rows are known."""
        whole = self.inputs is not None and not self.inputs.sampled
        if self.inputs is not None and whole and not self.method.packs:
            return self.inputs.longest
        return self.recipe.data.max_length

    @property
    def packed(self) -> int | None:
        """Tokens of the largest micro-batch, where rows will be scored without padding."""
        recipe, method, inputs = self.recipe, self.method, self.inputs
        if self.sized is None or inputs is None or inputs.sampled or method.packs:
            return None
        attention = recipe.model.attn_implementation
        reason = reason_against_config(
            self.sized.known.policy,
            "sdpa" if attention == "auto" else attention,
            self.target.strategy,
        )
        off = recipe.performance.shared_prefix == "off"
        return None if reason or off else inputs.packed(recipe, method)

    def count(self) -> None:
        """Steps, tokens, and what is written to the disk; trl's configuration."""
        recipe, method, found, inputs = self.recipe, self.method, self.found, self.inputs
        if inputs is None:
            # Only the data can settle the method.
            found.try_check(lambda: accumulate(recipe.training, self.target.devices))
            return
        rows, exact = inputs.sequences(method, recipe.data.max_length)
        steps = found.try_check(
            lambda: plan(
                recipe.training,
                rows,
                exact=exact,
                has_eval=inputs.eval is not None,
                world=self.target.devices,
            )
        )
        if steps is None:
            return
        a_step = inputs.tokens_an_epoch / steps.steps_per_epoch
        say(
            *steps.lines(recipe.training),
            f"plan: {a_step:,.0f} tokens a step on average, {a_step * steps.steps:,.0f} in all",
            *sft_mix_lines(recipe, inputs.sft_mix, steps),
        )
        found.facts |= {
            "steps": steps.steps,
            "warmup_steps": steps.warmup_steps,
            "accumulation": steps.accumulation,
            "evaluations": steps.evaluations,
            "checkpoints": steps.checkpoints,
            "tokens_per_step": a_step,
            "tokens": a_step * steps.steps,
        }
        if self.sized is not None:
            room = disk(recipe, self.sized.sizes.trainable, steps)
            say(*room.lines())
            found.facts["disk"] = room.as_dict()
            # A GPU is what tells the machine of the run from a laptop or a login node.
            found.collect_warnings(
                lambda: check_disk(room, elsewhere=detect_device().kind == "cpu")
            )
        effective = found.try_check(lambda: _configure(recipe, method, self.target.devices))
        if effective is not None:
            found.facts["effective"] = effective
            say(f"learning rate: {learning_rate(recipe, method):g}")

    def rehearse(self) -> None:
        """A step without memory, for what it would take; and how to take less."""
        start, target, found = self.start, self.target, self.found
        ours = self.sized
        if ours is None or start is None:
            return
        if world_size() > 1:
            # Under a launcher the trainer would look for its fellows.
            self._not_rehearsed("one process rehearses it: leave the launcher out, with --devices")
            return
        config = ours.known.policy
        settled = self.method if self.inputs is not None else self.method.for_labels(1, 1)[0]

        def memory_of(change: Candidate, run_of: Callable[..., StepPeaks] = fake_run) -> Memory:
            sized = ours if change.recipe is self.recipe else size(change.recipe, start, config)
            length = min(self.longest, change.recipe.data.max_length)
            model, where = (sized.known, sized.sizes), change.target
            return predict(
                change.recipe, change.method, *model, where, length=length, run_of=run_of
            )

        planned = Candidate(self.recipe, settled, target)
        try:
            memory = memory_of(planned)
        # A model may do what fake tensors can't follow; that says nothing about the recipe.
        except Exception as error:
            self._not_rehearsed(str(error).strip().partition("\n")[0])
            return
        say(*memory.lines(target))
        found.facts["memory"] = memory.as_dict(target)
        if memory.fits(target):
            return
        steps: list[Remedy] = []
        cure: list[Remedy] = []
        if not found.problems:  # else it is put right first
            quick = functools.partial(memory_of, run_of=estimated_run)
            for step in remedies(planned, memory, quick):
                say(f"remedy: {step}")
                steps.append(step)
            cure = fewest(planned, steps, quick, memory_of)
        found.facts["remedies"] = [step.as_dict() for step in steps]
        found.facts["cure"] = [step.typed for step in cure]
        found.try_check(lambda: refuse(memory, target, cure))

    def _not_rehearsed(self, why: str) -> None:
        message = f"memory: a step can't be rehearsed ({why})"
        asked = self.target.gpu_memory is not None
        self.found.unchecked += [Problem(message)] if asked else []
        say(f"note: {message}")


def _configure(recipe: Recipe, method: Method, world: int) -> dict[str, Any]:
    """trl's config as this machine would get it; every other value is the recipe's."""
    options = trl_options(recipe, method, detect_device(), world)
    config_class, _ = method.trl_classes()
    return assert_args_applied(options, build(options, config_class))


def _untried(recipe: Recipe, device: str) -> list[str]:
    """What a machine without a GPU can't try."""
    if device != "cpu":
        return []
    wants = [
        f"model.{key}: {value}"
        for key in ("dtype", "attn_implementation")
        if (value := getattr(recipe.model, key))
        in ("bfloat16", "float16", "flash_attention_2", "flash_attention_3")
    ]
    if recipe.model.quantization is not None:
        wants.append(f"model.quantization: {recipe.model.quantization}")
    if recipe.training.needs_bitsandbytes:
        wants.append(f"training.optim: {recipe.training.optim}")
    return [f"no GPU here, so these are not tried: {', '.join(wants)}"] if wants else []
