"""The sbatch file of one command: its options, its command line, its requeue on exit code 75."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any, Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.errors import RecipeError
from prefcli.recipe import Recipe
from prefcli.slurm.resources import (
    CHECK_SFT,
    Resources,
    find_resources,
    format_duration,
    parse_time_limit,
)

_TEMPLATES = Environment(
    loader=PackageLoader("prefcli.slurm"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PLAIN_BYTES = frozenset(range(0x20, 0x7F)) - {*b"'\\"}


@dataclass(frozen=True, kw_only=True)
class SbatchOptions:
    """The options of `prefcli slurm`, under the names of its parameters."""

    time: str
    grace: int
    """Seconds between the signal and the time limit."""
    max_requeues: int
    gpus: int | None = None
    jobs: int | None = None
    """Tasks of a job array that run at once; all by default."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    mem: str | None = None
    cpus_per_task: int | None = None
    sbatch: Sequence[str] = ()
    """Other options of sbatch, with their dashes."""
    module: Sequence[str] = ()
    setup: Sequence[str] = ()
    """Lines of shell."""
    venv: str | None = None
    container: str | None = None
    container_runtime: str | None = None
    mount: Sequence[str] = ()
    offline: bool = False
    allow_unusual: bool = False

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Take the options from the parameters of a command line; None is the default."""
        names = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in parameters.items() if k in names and v is not None})

    def __post_init__(self) -> None:
        limit = parse_time_limit(self.time)
        if self.grace >= limit:
            raise RecipeError(
                f"--grace {self.grace} is not shorter than --time {self.time} "
                f"({format_duration(limit)})",
                code="ENV024",
                hint="pass a longer --time (4:00 is four minutes, 4:00:00 four hours) or a "
                "shorter --grace",
            )
        if self.container_runtime not in (None, "pyxis", "apptainer"):
            raise RecipeError(
                f"--container-runtime {self.container_runtime}: not supported",
                code="ENV025",
                hint="write pyxis or apptainer",
            )
        if self.container is None:
            given = {"--container-runtime": self.container_runtime, "--mount": self.mount}
            for option in (name for name, value in given.items() if value):
                raise RecipeError(
                    f"{option} has no effect without --container",
                    code="ENV025",
                    hint=f"add --container, or remove {option}",
                )
        elif self.venv is not None:
            raise RecipeError(
                "--venv and --container: prefcli can only be installed in one of them",
                code="ENV025",
                hint="remove one",
            )


def sbatch_file(
    recipe: Recipe,
    command: str,
    arguments: Sequence[str],
    options: SbatchOptions,
    made_by: Sequence[str],
    *,
    tasks: Sequence[Sequence[str]] = (),
) -> str:
    """Return the text of a job file.

    command: a method or check-sft. arguments: the recipe's path and the overrides. made_by: the
    words of the command line that asked for the file. tasks: the words of each task's command, for
    a job array; recipe and command are then those of the first task.
    """
    resources = find_resources(recipe, command, options.gpus)
    folder, name = _run_folder(recipe, command)
    if tasks:
        name = PurePath(os.path.abspath(folder)).name or name
    flags = ["--offline"] * options.offline + ["--allow-unusual"] * options.allow_unusual
    return _TEMPLATES.get_template("sbatch.jinja").render(
        command=command,
        length=format_duration(parse_time_limit(options.time)),
        made_by=command_line(made_by),
        file="sweep.sbatch" if tasks else f"{command}.sbatch",
        mkdir=f"mkdir -p {quote(folder)} && " if folder else "",
        download=command_line(["prefcli", "download", *arguments]),
        offline=options.offline,
        modules=options.module,
        setup=_setup_lines(options),
        options=_sbatch_options(resources, folder, name, options, len(tasks)),
        tasks=[command_line([*words, *flags]) for words in tasks],
        srun=" \\\n    ".join(
            [
                *_srun_lines(resources, options),
                'prefcli "$@"' if tasks else command_line(["prefcli", command, *arguments, *flags]),
            ]
        ),
        max_requeues=options.max_requeues,
    )


def quote(word: str) -> str:
    """Return one word for bash, on one line: unprintable characters become $'a\\x0ab'."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (chr(b) if b in _PLAIN_BYTES else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(escaped)}'"


def command_line(words: Iterable[str]) -> str:
    """Return a command for bash, on one line."""
    return " ".join(map(quote, words))


def _run_folder(recipe: Recipe, command: str) -> tuple[str, str]:
    """Return the parent folder of output_dir, and the run's name."""
    path = os.path.normpath(recipe.output_dir)
    name = PurePath(os.path.abspath(path)).name or "prefcli"
    return os.path.dirname(path), f"{name}-{CHECK_SFT}" if command == CHECK_SFT else name


def _sbatch_options(
    resources: Resources, folder: str, name: str, options: SbatchOptions, tasks: int
) -> list[str]:
    # Slurm replaces what follows a percent sign.
    number = "%A_%a" if tasks else "%j"
    log = os.path.join(folder, f"{name}-").replace("%", "%%") + f"{number}.log"
    at_once = f"%{options.jobs}" if options.jobs else ""
    values = {
        "job-name": re.sub(r"[^\w.+-]+", "-", name, flags=re.A).strip("-") or "prefcli",
        **({"array": f"0-{tasks - 1}{at_once}"} if tasks else {}),
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "gres": f"gpu:{resources.gpus}" if resources.gpus else None,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "time": options.time,
        "signal": f"TERM@{options.grace}",
        "output": log,
        "open-mode": "append",
    }
    # With --requeue, Slurm also requeues the job if a node fails.
    requeue = "--requeue" if options.max_requeues else "--no-requeue"
    lines = [f"--{key}={value}" for key, value in values.items() if value is not None]
    _check_sbatch_options(options.sbatch, {*values, "requeue", "no-requeue"})
    lines += [requeue, *options.sbatch]
    for line in lines:
        if not line.isprintable() or "\\" in line:
            raise RecipeError(
                f"{line!r}: Slurm does not accept line breaks or backslashes in an option",
                code="ENV026",
                hint="remove them",
            )
    return [quote(line) for line in lines]


def _check_sbatch_options(options: Sequence[str], used: set[str]) -> None:
    for option in options:
        key = re.match(r"--([a-z][a-z-]*)(=|$)", option)
        if key is None:
            raise RecipeError(
                f"--sbatch {option}: not a long option of sbatch",
                code="ENV026",
                hint="write it as --sbatch=--constraint=a100",
            )
        if key[1] in used:
            raise RecipeError(
                f"--sbatch {option}: the job file already has --{key[1]}",
                code="ENV026",
                hint="change the recipe, or the option of prefcli slurm that sets it",
            )


def _setup_lines(options: SbatchOptions) -> list[str]:
    lines = [f"module load {quote(module)}" for module in options.module]
    if options.venv is not None:
        activate = os.path.join(os.path.expanduser(options.venv), "bin", "activate")
        lines += ["# shellcheck source=/dev/null", f"source {quote(activate)}"]
    return [*lines, *options.setup]


def _srun_lines(resources: Resources, options: SbatchOptions) -> list[str]:
    """Return the start of the command, as lines of shell."""
    # Sites that submit with --export=NONE would drop the environment that was set up above.
    lines = ["srun --export=ALL"]
    if options.cpus_per_task is not None:
        # Slurm 22.05 and later do not pass the job's --cpus-per-task to its steps.
        lines[0] += f" --cpus-per-task={options.cpus_per_task}"
    if resources.nodes > 1:
        # When the task of one node ends, the others get time to save. --kill-on-bad-exit would
        # send them SIGTERM first, which makes a crash look like a preemption.
        lines[0] += f" --kill-on-bad-exit=0 --wait={options.grace}"
    if options.container is None:
        return lines
    image = quote(options.container)
    if options.container_runtime == "apptainer":
        gpu = " --nv" if resources.gpus else ""
        binds = "".join(f" --bind {quote(mount)}" for mount in options.mount)
        return [*lines, f'apptainer exec{gpu} --bind "$PWD" --pwd "$PWD"{binds} {image}']
    mounts = "".join(f",{quote(mount)}" for mount in options.mount)
    return [
        *lines,
        f'--container-image={image} --container-mounts="$PWD:$PWD"{mounts} '
        '--container-workdir="$PWD"',
    ]
