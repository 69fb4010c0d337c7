"""The sbatch file of one command: what it asks for, what it runs, what becomes of exit code 75."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.errors import RecipeError
from prefcli.recipe import Recipe
from prefcli.slurm.resources import CHECK_SFT, Resources, need
from prefcli.slurm.times import in_words, seconds
from prefcli.slurm.words import command_line, quoted

_FILES = Environment(
    loader=PackageLoader("prefcli.slurm"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, kw_only=True)
class SbatchOptions:
    """What the recipe does not say, as it was typed."""

    time: str
    grace: int
    """Seconds between the signal and the end."""
    max_requeues: int
    gpus: int | None
    partition: str | None
    account: str | None
    qos: str | None
    mem: str | None
    cpus_per_task: int | None
    sbatch: Sequence[str]
    """More options of sbatch, each with its dashes."""
    modules: Sequence[str]
    setup: Sequence[str]
    """Lines of shell."""
    venv: str | None
    container: str | None
    runtime: str | None
    """pyxis or apptainer."""
    mounts: Sequence[str]
    offline: bool
    flags: Sequence[str]
    """Of prefcli, for the command."""

    def __post_init__(self) -> None:
        if self.grace >= seconds(self.time):
            raise RecipeError(
                f"--grace {self.grace}: the signal would come before the start of a job of "
                f"--time {self.time} ({in_words(seconds(self.time))})",
                hint="a longer --time (4:00 is four minutes, 4:00:00 four hours), "
                "or a shorter --grace",
            )
        if self.runtime not in (None, "pyxis", "apptainer"):
            raise RecipeError(f"--container-runtime {self.runtime}: pyxis or apptainer")
        if self.container is None:
            asked = {"--container-runtime": self.runtime is not None, "--mount": bool(self.mounts)}
            for option in (name for name, given in asked.items() if given):
                raise RecipeError(f"{option} has no effect without --container")
        elif self.venv is not None:
            raise RecipeError(
                "--venv and --container: prefcli runs in one of them",
                hint="leave the other out",
            )


def sbatch_file(
    recipe: Recipe,
    command: str,
    arguments: Sequence[str],
    wishes: SbatchOptions,
    made_by: Sequence[str],
) -> str:
    """command: a method or check-sft; arguments: its own, the recipe's path first; made_by: the
    words of the command line that asked for the file."""
    needed = need(recipe, command, wishes.gpus)
    folder, name = _run_folder(recipe, command)
    offline = ["--offline"] if wishes.offline else []
    return _FILES.get_template("sbatch.jinja").render(
        command=command,
        length=in_words(seconds(wishes.time)),
        made_by=command_line(made_by),
        file=f"{command}.sbatch",
        mkdir=f"mkdir -p {quoted(folder)} && " if folder else "",
        fetch=command_line(["prefcli", "download", *arguments]),
        offline=wishes.offline,
        modules=wishes.modules,
        setup=_setup(wishes),
        options=_options(needed, folder, name, wishes),
        srun=" \\\n    ".join(
            [
                *_srun(needed, wishes),
                command_line(["prefcli", command, *arguments, *offline, *wishes.flags]),
            ]
        ),
        max_requeues=wishes.max_requeues,
    )


def _run_folder(recipe: Recipe, command: str) -> tuple[str, str]:
    """The folder that the run folder lies in, and the run's name."""
    path = os.path.normpath(recipe.output_dir)
    name = PurePath(os.path.abspath(path)).name or "prefcli"
    return os.path.dirname(path), f"{name}-{CHECK_SFT}" if command == CHECK_SFT else name


def _options(needed: Resources, folder: str, name: str, wishes: SbatchOptions) -> list[str]:
    # Slurm fills in what follows a percent sign.
    log = os.path.join(folder, f"{name}-").replace("%", "%%") + "%j.log"
    asked = {
        "job-name": re.sub(r"[^\w.+-]+", "-", name, flags=re.A).strip("-") or "prefcli",
        "partition": wishes.partition,
        "account": wishes.account,
        "qos": wishes.qos,
        "nodes": needed.nodes,
        "ntasks-per-node": 1,
        "gres": f"gpu:{needed.gpus}" if needed.gpus else None,
        "cpus-per-task": wishes.cpus_per_task,
        "mem": wishes.mem,
        "time": wishes.time,
        "signal": f"TERM@{wishes.grace}",
        "output": log,
        "open-mode": "append",
    }
    # A node that fails is for Slurm to put right: it requeues what may be requeued.
    requeue = "--requeue" if wishes.max_requeues else "--no-requeue"
    options = [f"--{key}={value}" for key, value in asked.items() if value is not None]
    written = {*asked, "requeue", "no-requeue"}
    for option in wishes.sbatch:
        key = re.match(r"--([a-z][a-z-]*)(=|$)", option)
        if key is None:
            raise RecipeError(
                f"--sbatch {option}: write it as in --sbatch=--constraint=a100, the long form"
            )
        if key[1] in written:
            raise RecipeError(
                f"--sbatch {option}: the job file has a --{key[1]} of its own",
                hint="it comes from the recipe or from an option of prefcli slurm",
            )
    options += [requeue, *wishes.sbatch]
    for option in options:
        if not option.isprintable() or "\\" in option:
            raise RecipeError(f"{option!r}: Slurm reads no line break and no backslash there")
    return [quoted(option) for option in options]


def _setup(wishes: SbatchOptions) -> list[str]:
    lines = [f"module load {quoted(module)}" for module in wishes.modules]
    if wishes.venv is not None:
        activate = os.path.join(os.path.expanduser(wishes.venv), "bin", "activate")
        lines += ["# shellcheck source=/dev/null", f"source {quoted(activate)}"]
    return [*lines, *wishes.setup]


def _srun(needed: Resources, wishes: SbatchOptions) -> list[str]:
    """The start of the command, as lines of shell."""
    # Without it a site that submits with --export=NONE loses what was set up above.
    lines = ["srun --export=ALL"]
    if wishes.cpus_per_task is not None:
        # Slurm 22.05 and later do not hand the job's on to its steps.
        lines[0] += f" --cpus-per-task={wishes.cpus_per_task}"
    if needed.nodes > 1:
        # Once one node's task has ended, the others get as long as they need to save. Not
        # --kill-on-bad-exit: it sends them a TERM first, and a crash would look pre-empted.
        lines[0] += f" --kill-on-bad-exit=0 --wait={wishes.grace}"
    if wishes.container is None:
        return lines
    image = quoted(wishes.container)
    if wishes.runtime == "apptainer":
        gpu = " --nv" if needed.gpus else ""
        binds = "".join(f" --bind {quoted(mount)}" for mount in wishes.mounts)
        return [*lines, f'apptainer exec{gpu} --bind "$PWD" --pwd "$PWD"{binds} {image}']
    mounts = "".join(f",{quoted(mount)}" for mount in wishes.mounts)
    return [
        *lines,
        f'--container-image={image} --container-mounts="$PWD:$PWD"{mounts} '
        '--container-workdir="$PWD"',
    ]
