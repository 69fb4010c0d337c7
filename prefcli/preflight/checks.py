"""The checks before training, cheapest first: one list for runs, dry-runs, `prepare` and `data`.

A run goes through the list and stops at the first error. `--dry-run` goes through the same list
and collects every error, so a recipe that passes it starts. `prefcli prepare` and `prefcli data`
run only the checks that their rows depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from prefcli.checkpoints.disk import check_disk_space, required_disk_space
from prefcli.checkpoints.push_to_hub import check_push, push_warnings
from prefcli.checkpoints.resume import check_run_dir, find_resume_checkpoint
from prefcli.checkpoints.resume_compat import row_fingerprints
from prefcli.console import say_brief, warn
from prefcli.data.model_fit import check_model_fit, check_reference, check_rows_fit
from prefcli.data.run_datasets import (
    load_run_datasets,
    read_run_datasets,
)
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.memory.automatic import refuse_too_large, resolve_automatic
from prefcli.memory.model_info import describe_model
from prefcli.memory.optimizer_state_size import on_disk
from prefcli.methods import Method
from prefcli.model import check_model, load_base_config, load_tokenizer
from prefcli.model.base_model import check_start_weights, reference_model
from prefcli.model.device import refuse_many_gpus_without_launcher
from prefcli.model.distributed import check_launch_section
from prefcli.model.parts import UNREACHED
from prefcli.preflight.context import PreflightContext
from prefcli.preflight.requirements import check_packages
from prefcli.preflight.save_check import check_saving, processor_lines
from prefcli.preflight.stop_token_check import tokenizer_warnings
from prefcli.preflight.training_plan import make_plan, sft_mix_lines
from prefcli.recipe.compatibility import check_combinations
from prefcli.recipe.published_ranges import check_published_ranges
from prefcli.recipe.schema import JUDGE_EXAMPLE, NEEDS_JUDGE, Recipe
from prefcli.trl_integration.trl_args import accumulate, batch_sizes, notes

T = TypeVar("T")


class Report(NamedTuple):
    """The lines that a check prints when it passes."""

    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    brief: Sequence[str] | None = None
    """What a run prints of the lines on a terminal; None: all of them."""


class Check(NamedTuple):
    """One question that is answered before any weights are loaded."""

    name: str
    needs: tuple[str, ...]
    """The checks that must have passed before this one."""
    run: Callable[[PreflightContext], Report | None]
    """Raises a PrefcliError if the run must not start."""


def checks_for(*names: str) -> tuple[Check, ...]:
    """Select these checks and all that they need, in the order of the list."""
    selected = set(names)
    for check in reversed(CHECKS):
        if check.name in selected:
            selected.update(check.needs)
    return tuple(check for check in CHECKS if check.name in selected)


def run_checks(context: PreflightContext, checks: Sequence[Check]) -> None:
    """Run the checks and print their reports. Raises the first error."""
    for check in checks:
        report = check.run(context) or Report()
        say_brief(report.lines if report.brief is None else report.brief, report.lines)
        for warning in report.warnings:
            warn(warning)


def _check_output_dir(context: PreflightContext) -> Report:
    folder = context.folder
    context.status = check_run_dir(
        folder, context.recipe, context.method, context.resume, context.changes
    )
    if context.status is None:
        return Report()
    lines = [f"output: {folder.path} holds this run ({context.status})"]
    if context.status != "finished":
        context.checkpoint = find_resume_checkpoint(folder, context.resume)
        lines.append(
            f"resuming from {context.checkpoint}"
            if context.checkpoint is not None
            else f"{folder.path} has no complete checkpoint yet: starting over"
        )
    return Report(lines)


def _check_launch(context: PreflightContext) -> None:
    if not context.will_be_launched:
        refuse_many_gpus_without_launcher()
        check_launch_section(context.recipe.launch)


def _check_push_to_hub(context: PreflightContext) -> Report:
    return Report(check_push(context.recipe), push_warnings(context.recipe))


def _check_packages(context: PreflightContext) -> None:
    check_packages(context.recipe, gpu_too=not context.elsewhere)


def _check_global_batch(context: PreflightContext) -> None:
    training, devices = context.recipe.training, context.target.devices
    if training.per_device_train_batch_size == "auto":
        batch_sizes(training, devices)
    else:
        accumulate(training, devices)


def _check_settings(context: PreflightContext) -> Report:
    recipe, method = context.recipe, context.method
    if recipe.lacks_judge(method):
        raise RecipeError(
            Problem(f"{method.name} {NEEDS_JUDGE}", path="judge", hint=JUDGE_EXAMPLE, code="JDG008")
        )
    warnings = check_combinations(recipe, method, context.target.strategy)
    check_early_stopping(recipe, method)
    return Report([f"note: {note}" for note in notes(recipe, method)], warnings)


def check_early_stopping(recipe: Recipe, method: Method) -> None:
    """Raise RecipeError if early stopping watches a metric that the method does not evaluate."""
    options = recipe.training.early_stopping
    if options is not None and options.metric not in method.eval_metrics:
        raise RecipeError(
            Problem(
                f"{method.name} does not measure {options.metric} in evaluations",
                path="training.early_stopping.metric",
                hint=f"choose one of {', '.join(method.eval_metrics)}",
                code="TRN061",
            )
        )


def _check_base_model(context: PreflightContext) -> None:
    context.start = check_model(context.recipe.model, context.recipe.lora)


def _check_weights(context: PreflightContext) -> Report:
    return Report(warnings=check_start_weights(context.recipe.model))


def _check_reference_weights(context: PreflightContext) -> Report | None:
    named = (
        reference_model(context.recipe.reference, context.recipe.model)
        if context.method.needs_reference
        else None
    )
    if named is None:
        return None
    return Report(warnings=check_start_weights(named, where="reference"))


def _check_tokenizer(context: PreflightContext) -> None:
    context.tokenizer = load_tokenizer(context.recipe.model)


def _check_config(context: PreflightContext) -> None:
    context.config = load_base_config(context.recipe.model)


def _check_fit(context: PreflightContext) -> None:
    check_model_fit(context.recipe, _known(context.config), _known(context.tokenizer))


def _check_reference(context: PreflightContext) -> None:
    if context.method.needs_reference:
        check_reference(context.recipe, _known(context.tokenizer))


def _check_architecture(context: PreflightContext) -> Report:
    info = describe_model(context.recipe, _known(context.start), _known(context.config))
    context.model_info = info
    return Report(info.lines(context.tokenizer), brief=info.brief_lines())


def _check_saving(context: PreflightContext) -> None:
    check_saving(context.recipe, _known(context.config), _known(context.tokenizer))


def _check_processor(context: PreflightContext) -> Report | None:
    parts = _known(context.model_info).parts
    return Report(*processor_lines(context.recipe)) if parts.keys() & set(UNREACHED) else None


def _check_published_ranges(context: PreflightContext) -> Report:
    parameters = _known(context.model_info).parameters
    return Report(
        warnings=check_published_ranges(
            context.recipe, context.method, parameters, allowed=context.allow_unusual
        )
    )


def _check_rows(context: PreflightContext) -> Report:
    recipe, tokenizer = context.recipe, _known(context.tokenizer)
    lines = []
    if context.use_row_cache:
        datasets = load_run_datasets(recipe, context.method, tokenizer)
    else:
        sample = context.sample
        if sample is None and context.failed and context.sample_after_error is not None:
            sample = context.sample_after_error
            lines.append(f"data: reading at most {sample} rows of each source, as a check failed")
        datasets = read_run_datasets(recipe, context.method, tokenizer, sample=sample)
    context.datasets = datasets
    context.method, resolved = datasets.resolve_from_data(context.method)
    brief = [*lines]
    for split in datasets.splits:
        lines += split.lines()
        brief += split.brief_lines()
    return Report([*lines, *datasets.cache_lines(), *resolved], brief=[*brief, *resolved])


def _check_data_checks(context: PreflightContext) -> Report:
    warnings, errors = _known(context.datasets).judge(context.recipe.data.checks)
    if errors:
        raise DataError(errors)
    return Report(warnings=list(map(str, warnings)))


def _check_rows_fit(context: PreflightContext) -> None:
    rows = _known(context.config).get_text_config().vocab_size
    for split in _known(context.datasets).splits:
        check_rows_fit(split, _known(context.tokenizer), rows)


def _check_resumed_rows(context: PreflightContext) -> None:
    datasets = _known(context.datasets)
    if context.checkpoint is None or datasets.is_sample:
        return
    before = row_fingerprints(context.folder.read_run().get("data", {}))
    now = row_fingerprints({split.name: split.as_dict() for split in datasets.splits})
    # The recipe decides which splits there are; a split that is new has nothing to differ from.
    both = [name for name in now if name in before]
    context.changes.judge(
        context.folder.path,
        {name: before[name] for name in both},
        {name: now[name] for name in both},
    )


def _check_stop_tokens(context: PreflightContext) -> Report:
    tokenizer, datasets = _known(context.tokenizer), _known(context.datasets)
    warnings = tokenizer_warnings(
        context.recipe,
        tokenizer,
        conversational=datasets.train.conversational,
        ends=datasets.stop_tokens,
    )
    return Report(warnings=list(map(str, warnings)))


def _check_automatic(context: PreflightContext) -> Report:
    """Choose the strategy and the rows per device where the recipe leaves them open."""
    step = context.step_memory
    resolved = resolve_automatic(context.recipe, context.method, context.target, step)
    context.recipe, context.target = resolved.recipe, resolved.target
    if resolved.too_large is not None and step is not None and not context.reports_memory:
        refuse_too_large(*resolved.too_large, step)
    lines = [resolved.line] if resolved.line is not None else []
    return Report(lines, brief=lines if context.target.devices > 1 else ())


def _check_plan(context: PreflightContext) -> Report:
    recipe, datasets = context.recipe, _known(context.datasets)
    rows, exact = datasets.sequences_per_epoch(context.method, recipe.data.max_length)
    plan = make_plan(
        recipe.training,
        rows,
        exact=exact,
        has_eval=datasets.eval is not None,
        world=context.target.devices,
    )
    context.plan = plan
    trained = "completions" if context.method.needs_judge else "rows"
    return Report(
        [*plan.lines(recipe.training, trained), *sft_mix_lines(recipe, datasets.sft_mix, plan)],
        plan.warnings(recipe.training),
    )


def _check_disk_space(context: PreflightContext) -> Report:
    recipe, trainable = context.recipe, _known(context.model_info).sizes.trainable
    space = required_disk_space(
        recipe,
        trainable,
        optimizer=on_disk(recipe.training.optim, trainable),
        checkpoints=_known(context.plan).checkpoints,
    )
    context.disk_space = space
    return Report(space.lines(), check_disk_space(space, elsewhere=context.elsewhere), brief=())


def _known(fact: T | None) -> T:
    assert fact is not None, "a check ran before one that it needs"
    return fact


CHECKS: tuple[Check, ...] = (
    Check("output_dir", (), _check_output_dir),
    Check("launch", (), _check_launch),
    Check("push_to_hub", (), _check_push_to_hub),
    Check("packages", (), _check_packages),
    Check("global_batch", (), _check_global_batch),
    Check("settings", (), _check_settings),
    Check("base_model", (), _check_base_model),
    Check("weights", ("base_model",), _check_weights),
    Check("reference_weights", (), _check_reference_weights),
    Check("tokenizer", (), _check_tokenizer),
    Check("config", ("base_model",), _check_config),
    Check("fit", ("config", "tokenizer"), _check_fit),
    Check("reference", ("config", "tokenizer"), _check_reference),
    Check("architecture", ("base_model", "config"), _check_architecture),
    Check("saving", ("config", "tokenizer"), _check_saving),
    Check("processor", ("architecture",), _check_processor),
    Check("published_ranges", ("architecture",), _check_published_ranges),
    Check("rows", ("tokenizer",), _check_rows),
    Check("data_checks", ("rows",), _check_data_checks),
    Check("rows_fit", ("config", "rows"), _check_rows_fit),
    Check("resumed_rows", ("output_dir", "rows"), _check_resumed_rows),
    Check("stop_tokens", ("rows",), _check_stop_tokens),
    Check("automatic", ("global_batch",), _check_automatic),
    Check("plan", ("automatic", "rows"), _check_plan),
    Check("disk_space", ("architecture", "plan"), _check_disk_space),
)
