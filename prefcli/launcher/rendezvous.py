"""Where the machines of one run meet: told by variables, or worked out of a Slurm job."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prefcli.errors import Problem, RecipeError

_PORTS = range(15_000, 30_000)
"""Below those that Linux gives to whoever asks for any."""


@dataclass(frozen=True)
class Rendezvous:
    """machine: this one's number, from 0. address, port: where machine 0 listens."""

    machine: int
    address: str
    port: int
    job: str
    """The same on all machines of a run, and on no other's."""


def meeting(machines: int, environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """For a run on several machines. Raises RecipeError where nobody tells them of each other.

    NODE_RANK, MASTER_ADDR and MASTER_PORT go before what Slurm says.
    """
    slurm = _slurm(machines, environment) if "SLURM_JOB_ID" in environment else {}
    told = slurm | {name: environment[name] for name in _NAMES if environment.get(name)}
    missing = [name for name in _NAMES if name not in told]
    if missing:
        raise RecipeError(
            Problem(
                f"{machines} machines have to find each other, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set",
                path="launch.nodes",
                hint="start prefcli with srun, one task a machine; or set NODE_RANK (0 to "
                f"{machines - 1}) on each machine, and on all of them MASTER_ADDR (the host name "
                "of machine 0) and MASTER_PORT (a free port there)",
            )
        )
    rank, port = (_number(name, told[name]) for name in ("NODE_RANK", "MASTER_PORT"))
    if rank >= machines:
        raise _differ(machines, f"this is machine {rank} by NODE_RANK, which counts from 0")
    return Rendezvous(rank, told["MASTER_ADDR"], port, environment.get("SLURM_JOB_ID", "prefcli"))


def refuse_copies(machines: int, environment: Mapping[str, str] = os.environ) -> None:
    """Of a launcher one a machine is enough; srun starts as many as the job has tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdigit() and int(tasks) > machines:
        raise RecipeError(
            Problem(
                f"srun has started prefcli {tasks} times on {machines} "
                f"machine{'s' * (machines > 1)}: with a launch section it starts its processes "
                "itself",
                path="launch",
                hint=f"srun --nodes {machines} --ntasks-per-node 1",
            )
        )


_NAMES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def _slurm(machines: int, environment: Mapping[str, str]) -> dict[str, str]:
    def of_step_or_job(step: str, job: str) -> str | None:
        return environment.get(step) or environment.get(job)

    count = of_step_or_job("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if count is not None and _number("SLURM_NNODES", count) != machines:
        raise _differ(machines, f"the Slurm job has {count}")
    nodes = of_step_or_job("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    found = {"NODE_RANK": environment.get("SLURM_NODEID"), "MASTER_ADDR": first_host(nodes or "")}
    job = _number("SLURM_JOB_ID", environment["SLURM_JOB_ID"])
    found["MASTER_PORT"] = str(_PORTS[job % len(_PORTS)])
    return {name: value for name, value in found.items() if value}


def first_host(nodes: str) -> str:
    """Of a list as Slurm writes it: gpu[003-005,009],big1 begins with gpu003."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else "")


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise RecipeError(Problem(f"{name} is {text!r}, which is no number", path="launch.nodes"))
    return int(text)


def _differ(machines: int, found: str) -> RecipeError:
    return RecipeError(
        Problem(
            f"the recipe asks for {machines} machines, and {found}",
            path="launch.nodes",
            hint="make them the same, in the recipe or in the job",
        )
    )
