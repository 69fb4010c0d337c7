"""One command a method: train, or with --dry-run prove that training would go well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import typer

from prefcli.cli.app import (
    Json,
    LocatedError,
    Offline,
    OutputDir,
    Overrides,
    RecipeArgument,
    app,
    load_recipe,
    print_json,
    resolve_offline,
    section,
)
from prefcli.cli.launch import start_processes
from prefcli.console import keep_stdout_for_json, say
from prefcli.errors import PrefcliError, RecipeError
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded

Sample = Annotated[
    int | None,
    typer.Option(min=1, help="With --dry-run: look at N rows of each source only.", metavar="N"),
]
GpuMemory = Annotated[
    str | None,
    typer.Option(help="With --dry-run: does it fit? As in 80GiB.", metavar="SIZE"),
]
Devices = Annotated[
    int | None, typer.Option(min=1, help="With --dry-run: GPUs of the run.", metavar="N")
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="With --dry-run: how the model is spread over them.",
        metavar="ddp|fsdp2|zero2|zero3",
    ),
]


def _method_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Prove that the recipe will run; train nothing.")
        ] = False,
        resume: Annotated[
            str,
            typer.Option(
                help="auto: go on from the run's last checkpoint, if there is one; never; "
                "or a checkpoint folder.",
                metavar="auto|never|PATH",
            ),
        ] = "auto",
        force_resume: Annotated[
            bool,
            typer.Option(
                "--force-resume",
                help="Go on although settings, data or processes have changed, where that is safe.",
            ),
        ] = False,
        output_dir: OutputDir = None,
        allow_unusual: Annotated[
            bool,
            typer.Option(
                "--allow-unusual", help="Take values ten times outside what is published."
            ),
        ] = False,
        sample: Sample = None,
        gpu_memory: GpuMemory = None,
        devices: Devices = None,
        strategy: Strategy = None,
        offline: Offline = False,
        as_json: Json = False,
    ) -> None:
        keep_stdout_for_json(as_json)
        loaded = load_recipe(recipe, overrides, output_dir)
        method = section(loaded, name)
        resolve_offline(loaded, offline=offline)
        if dry_run:
            if force_resume:
                raise RecipeError("--force-resume has no effect on --dry-run", hint="drop one")
            aims = Aims(devices, strategy, gpu_memory, sample)
            _rehearse(
                loaded,
                method,
                aims,
                resume,
                as_json,
                allow_unusual=allow_unusual,
                offline=offline,
            )
            return
        _need_dry_run(sample=sample, gpu_memory=gpu_memory, devices=devices, strategy=strategy)
        start_processes(loaded)
        _train(
            loaded,
            method,
            resume,
            as_json,
            allow_unusual=allow_unusual,
            force_resume=force_resume,
        )

    command.__doc__ = METHODS[name].__doc__
    return command


def _train(
    loaded: Loaded,
    method: Method,
    resume: str,
    as_json: bool,
    *,
    allow_unusual: bool,
    force_resume: bool,
) -> None:
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()  # some speak as soon as they are imported
    from prefcli.training.run import train

    try:
        outcome = train(
            loaded.recipe,
            method,
            resume,
            allow_unusual=allow_unusual,
            force_resume=force_resume,
        )
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint, if there is one")
        raise typer.Exit(130) from None  # 128 + SIGINT, as shells have it
    if as_json:
        print_json(vars(outcome))


def _need_dry_run(**options: object) -> None:
    """An option without an effect would be a misunderstanding."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise RecipeError(f"{', '.join(given)} has no effect on a run", hint="add --dry-run")


class Aims(NamedTuple):
    """What a dry-run is for, as it was typed."""

    devices: int | None
    strategy: str | None
    gpu_memory: str | None
    sample: int | None


def _rehearse(
    loaded: Loaded,
    method: Method,
    aims: Aims,
    resume: str,
    as_json: bool,
    *,
    allow_unusual: bool,
    offline: bool,
) -> None:
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()
    from prefcli.memory.hardware import target_of
    from prefcli.training.dry_run import dry_run

    found = dry_run(
        loaded.recipe,
        method,
        resume,
        target=target_of(aims.devices, aims.strategy, aims.gpu_memory, loaded.recipe.launch),
        allow_unusual=allow_unusual,
        sample=aims.sample,
    )
    found.locate(loaded.locate)
    if as_json:
        print_json(found.as_dict())
    texts = dict.fromkeys(loaded.places.overrides.values())
    flags = ["--allow-unusual"] if allow_unusual else []
    flags += ["--resume", resume] if resume != "auto" else []
    flags += ["--offline"] if offline else []
    command = " ".join(["prefcli", method.name, loaded.places.source, *texts, *flags])
    say(*found.verdict(command))
    raise typer.Exit(found.exit_code)


for _name, _class in METHODS.items():
    app.command(_name, short_help=(_class.__doc__ or "").splitlines()[0])(_method_command(_name))
