"""Finds where the nodes of one run connect, from variables or from the Slurm job."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prefcli.errors import Problem, RecipeError

_PORTS = range(15_000, 30_000)
"""Below the range of Linux's ephemeral ports."""


@dataclass(frozen=True)
class Rendezvous:
    """The number of this node, from 0, and the address and port where node 0 listens."""

    node: int
    address: str
    port: int
    job: str
    """The same on all nodes of a run, and different in every other run."""


def find_rendezvous(nodes: int, environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """Return the rendezvous of a run on several nodes.

    NODE_RANK, MASTER_ADDR and MASTER_PORT take precedence over Slurm's variables. Raises
    RecipeError if neither is set.
    """
    slurm = _slurm(nodes, environment) if "SLURM_JOB_ID" in environment else {}
    variables = slurm | {name: environment[name] for name in _NAMES if environment.get(name)}
    missing = [name for name in _NAMES if name not in variables]
    if missing:
        raise RecipeError(
            Problem(
                f"{nodes} nodes must find each other, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set",
                path="launch.nodes",
                hint="start prefcli with srun, one task per node; or set NODE_RANK (0 to "
                f"{nodes - 1}) on each node, and on all of them MASTER_ADDR (the host name of "
                "node 0) and MASTER_PORT (a free port there)",
                code="ENV005",
            )
        )
    rank, port = (_number(name, variables[name]) for name in ("NODE_RANK", "MASTER_PORT"))
    if rank >= nodes:
        raise _mismatch(nodes, f"NODE_RANK is {rank}, counted from 0")
    return Rendezvous(
        rank, variables["MASTER_ADDR"], port, environment.get("SLURM_JOB_ID", "prefcli")
    )


def check_srun_tasks(nodes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise RecipeError if srun started several launchers on a node."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdigit() and int(tasks) > nodes:
        raise RecipeError(
            Problem(
                f"srun started prefcli {tasks} times on {nodes} node{'s' * (nodes > 1)}, but with "
                "a launch section prefcli starts its processes itself",
                path="launch",
                hint=f"use srun --nodes {nodes} --ntasks-per-node 1",
                code="ENV005",
            )
        )


_NAMES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def _slurm(nodes: int, environment: Mapping[str, str]) -> dict[str, str]:
    def of_step_or_job(step: str, job: str) -> str | None:
        return environment.get(step) or environment.get(job)

    count = of_step_or_job("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if count is not None and _number("SLURM_NNODES", count) != nodes:
        raise _mismatch(nodes, f"the Slurm job has {count}")
    node_list = of_step_or_job("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    variables = {
        "NODE_RANK": environment.get("SLURM_NODEID"),
        "MASTER_ADDR": first_host(node_list or ""),
    }
    job = _number("SLURM_JOB_ID", environment["SLURM_JOB_ID"])
    variables["MASTER_PORT"] = str(_PORTS[job % len(_PORTS)])
    return {name: value for name, value in variables.items() if value}


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list: gpu003 for gpu[003-005,009],big1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else "")


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise RecipeError(
            Problem(
                f"{name} is {text!r}, which is not a number",
                path="launch.nodes",
                hint=f"set {name} to a number",
                code="ENV005",
            )
        )
    return int(text)


def _mismatch(nodes: int, actual: str) -> RecipeError:
    return RecipeError(
        Problem(
            f"the recipe asks for {nodes} nodes, but {actual}",
            path="launch.nodes",
            hint="use the same number in the recipe and in the job",
            code="ENV005",
        )
    )
