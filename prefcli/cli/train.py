"""One command per method: train, or with --dry-run check that training would work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, NamedTuple

import typer

from prefcli.cli.launch import start_processes
from prefcli.cli.recipe_command import (
    Json,
    Offline,
    OutputDir,
    Overrides,
    RecipeArgument,
    command_app,
    heavy_half,
    open_recipe,
    print_json,
    refuse_without_effect,
    resolve_offline,
    section,
)
from prefcli.console import say, show_details
from prefcli.errors import ExitCode
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded
from prefcli.recipe.defaults import resolve_defaults

app = command_app()


class DryRunOptions(NamedTuple):
    """Assumptions of a dry-run about the run."""

    devices: int | None
    strategy: str | None
    gpu_memory: str | None
    sample: int | None

    def given(self) -> list[str]:
        values = self._asdict().items()
        return [f"--{name.replace('_', '-')}" for name, value in values if value is not None]


class RunFlags(NamedTuple):
    """Flags that a dry-run and its run have in common."""

    resume: str
    allow_unusual: bool
    offline: bool

    def words(self) -> list[str]:
        return [
            *(["--allow-unusual"] if self.allow_unusual else []),
            *(["--resume", self.resume] if self.resume != "auto" else []),
            *(["--offline"] if self.offline else []),
        ]


def _method_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Run every check that could fail, and train nothing."),
        ] = False,
        resume: Annotated[
            str,
            typer.Option(
                help="auto: resume from the run's last checkpoint, if there is one; never; "
                "or a checkpoint folder.",
                metavar="auto|never|PATH",
            ),
        ] = "auto",
        force_resume: Annotated[
            bool,
            typer.Option(
                "--force-resume",
                help="Resume although settings, data or processes have changed, if that is safe.",
            ),
        ] = False,
        output_dir: OutputDir = None,
        allow_unusual: Annotated[
            bool,
            typer.Option(
                "--allow-unusual",
                help="Accept values more than ten times outside published ranges.",
            ),
        ] = False,
        sample: Annotated[
            int | None,
            typer.Option(
                min=1, help="With --dry-run: check only N rows of each source.", metavar="N"
            ),
        ] = None,
        gpu_memory: Annotated[
            str | None,
            typer.Option(
                help="With --dry-run: check that training fits in this much memory, e.g. 80GiB.",
                metavar="SIZE",
            ),
        ] = None,
        devices: Annotated[
            int | None,
            typer.Option(min=1, help="With --dry-run: number of GPUs of the run.", metavar="N"),
        ] = None,
        strategy: Annotated[
            str | None,
            typer.Option(
                help="With --dry-run: how the GPUs share the model.",
                metavar="ddp|fsdp2|zero2|zero3",
            ),
        ] = None,
        offline: Offline = False,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose", "-v", help="Print details on a terminal, too; a log has them always."
            ),
        ] = False,
        as_json: Json = False,
    ) -> None:
        show_details(verbose)
        loaded = open_recipe(recipe, overrides, as_json=as_json, output_dir=output_dir)
        method = section(loaded, name)
        loaded = replace(loaded, recipe=resolve_defaults(loaded.recipe, method))
        resolve_offline(loaded, offline=offline)
        flags = RunFlags(resume, allow_unusual, offline)
        dry_run_options = DryRunOptions(devices, strategy, gpu_memory, sample)
        if dry_run:
            refuse_without_effect(
                ["--force-resume"] if force_resume else [], "--dry-run", "remove one of them"
            )
            _dry_run(loaded, method, dry_run_options, flags, as_json=as_json)
            return
        refuse_without_effect(dry_run_options.given(), "a run", "add --dry-run")
        start_processes(loaded, method, resume, allow_unusual=allow_unusual)
        _train(loaded, method, flags, force_resume=force_resume, as_json=as_json)

    command.__doc__ = METHODS[name].__doc__
    return command


def _train(
    loaded: Loaded, method: Method, flags: RunFlags, *, force_resume: bool, as_json: bool
) -> None:
    try:
        with heavy_half(loaded):
            from prefcli.training.run import train

            outcome = train(
                loaded.recipe,
                method,
                flags.resume,
                allow_unusual=flags.allow_unusual,
                force_resume=force_resume,
            )
    except KeyboardInterrupt:
        say("interrupted; rerun the same command to resume from the last checkpoint, if any")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        print_json(vars(outcome))


def _dry_run(
    loaded: Loaded, method: Method, options: DryRunOptions, flags: RunFlags, *, as_json: bool
) -> None:
    with heavy_half():
        from prefcli.checkpoints.saved_choices import with_saved_choices
        from prefcli.memory.hardware import target_of
        from prefcli.training.dry_run import dry_run

    recipe = with_saved_choices(loaded.recipe)
    result = dry_run(
        recipe,
        method,
        flags.resume,
        target=target_of(options.devices, options.strategy, options.gpu_memory, recipe.launch),
        allow_unusual=flags.allow_unusual,
        sample=options.sample,
    )
    result.locate(loaded.locate)
    if as_json:
        print_json(result.as_dict())
    overrides = dict.fromkeys(loaded.places.overrides.values())
    say(
        *result.verdict(
            " ".join(["prefcli", method.name, loaded.places.source, *overrides, *flags.words()])
        )
    )
    raise typer.Exit(result.exit_code)


for _name in METHODS:
    app.command(_name)(_method_command(_name))
