"""Everything short of training: what would stop this recipe is found before a GPU is booked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefcli.console import say
from prefcli.errors import PrefcliError, Problem
from prefcli.methods import Method
from prefcli.model import (
    check_start,
    check_targets,
    load_tokenizer,
    machine,
    parameters_of,
    start_config,
)
from prefcli.model.weights import check_weights, empty_model
from prefcli.recipe.schema import Recipe
from prefcli.recipe.unusual import check_unusual
from prefcli.training.arguments import (
    build,
    learning_rate,
    notes,
    plan,
    prove_arrival,
    trl_options,
)
from prefcli.training.folder import RunFolder
from prefcli.training.inputs import check_fit, check_reference, load_inputs
from prefcli.training.packages import check_packages
from prefcli.training.resume import where_it_stands
from prefcli.training.sft_mix import mix_lines

T = TypeVar("T")


@dataclass
class Rehearsal:
    """What was found; `failure` holds the first error's exit code and every problem."""

    problems: list[Problem] = field(default_factory=list)
    failure: PrefcliError | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Run a step; a problem is kept, and the steps that do not need it still run."""
        try:
            return step()
        except PrefcliError as error:
            self.problems += error.problems
            self.failure = self.failure or error
            return None


def dry_run(
    recipe: Recipe, method: Method, resume: str = "auto", *, allow_unusual: bool = False
) -> Rehearsal:
    """Read, convert, count and configure everything; load no weights and train nothing."""
    found = Rehearsal()
    device = machine()
    say(f"dry-run of prefcli {method.name}: {recipe.model.name_or_path}")
    folder = RunFolder(recipe.output_dir)
    status = found.attempt(lambda: where_it_stands(folder, recipe, method, resume))
    if status is not None:
        say(f"output: {recipe.output_dir} holds this run ({status})")

    # Without a GPU here, what a GPU needs is another machine's matter, and noted below.
    found.attempt(lambda: check_packages(recipe, gpu_too=device.kind == "cuda"))
    start = found.attempt(lambda: check_start(recipe))
    config = tokenizer = None
    if start is not None:
        base, adapter = start.base, start.adapter
        config = found.attempt(lambda: start_config(recipe.model))
        found.attempt(lambda: check_weights(base))
        tokenizer = found.attempt(lambda: load_tokenizer(recipe.model))
        if adapter is not None:
            say(f"model: an adapter of rank {adapter.r} on {base.name_or_path}")
    if config is not None:
        model = empty_model(config)
        total, _ = parameters_of(model)
        found.facts["parameters"] = total
        say(f"model: {type(model).__name__}, {total:,} parameters, {recipe.model.init} weights")
        for warning in (
            found.attempt(lambda: check_unusual(recipe, method, total, allowed=allow_unusual)) or []
        ):
            say(f"warning: {warning}")
        if recipe.lora is not None:
            lora = recipe.lora
            targets = found.attempt(lambda: check_targets(lora, model))
            if targets is not None:
                found.facts["lora_layers"] = len(targets)
                say(f"lora: rank {lora.rank} on {len(targets)} layers")
    if config is not None and tokenizer is not None:
        known_config, known_tokenizer = config, tokenizer
        found.attempt(lambda: check_fit(recipe, known_config, known_tokenizer))
        if method.needs_reference:
            found.attempt(lambda: check_reference(recipe, known_tokenizer))
    if tokenizer is not None:
        known = tokenizer
        inputs = found.attempt(lambda: load_inputs(recipe, method, known))
        if inputs is not None:
            method, settled = inputs.settle(method)
            say(*settled)
            for split in inputs.splits:
                say(*split.lines())
                found.facts[split.name] = split.as_dict()
            for warning in inputs.warnings:
                say(f"warning: {warning}")
            rows, exact = inputs.sequences(method, recipe.data.max_length)
            steps = found.attempt(
                lambda: plan(recipe.training, rows, exact=exact, has_eval=inputs.eval is not None)
            )
            if steps is not None:
                tokens = inputs.train.tokens
                say(*steps.lines(recipe.training), f"plan: {tokens} tokens an epoch")
                say(*mix_lines(recipe, inputs.sft_mix, steps))
                found.facts |= {"steps": steps.steps, "tokens_per_epoch": tokens}
    for note in _notes(recipe, method, device.kind):
        say(f"note: {note}")
    # Where the data is wrong, what only the data can settle stays open; the error is told above.
    effective = (
        found.attempt(lambda: _configure(recipe, method)) if "train" in found.facts else None
    )
    if effective is not None:
        found.facts["effective"] = effective
        say(f"learning rate: {learning_rate(recipe, method):g}")
    return found


def _configure(recipe: Recipe, method: Method) -> dict[str, Any]:
    """trl's config as this machine would get it; every other value is the recipe's."""
    options = trl_options(recipe, method, machine())
    config_class, _ = method.trl_classes()
    return prove_arrival(options, build(options, config_class))


def _notes(recipe: Recipe, method: Method, device: str) -> list[str]:
    found = notes(recipe, method)
    if device == "cpu":
        wants = [
            f"model.{key}: {value}"
            for key in ("dtype", "attn_implementation")
            if (value := getattr(recipe.model, key))
            in ("bfloat16", "float16", "flash_attention_2", "flash_attention_3")
        ]
        if recipe.model.quantization is not None:
            wants.append(f"model.quantization: {recipe.model.quantization}")
        if "8bit" in recipe.training.optim or "paged" in recipe.training.optim:
            wants.append(f"training.optim: {recipe.training.optim}")
        if wants:
            found.append(f"no GPU here, so these are not tried: {', '.join(wants)}")
    return found
