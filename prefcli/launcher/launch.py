"""Launches the processes of a launch section, from their environment to their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from accelerate.commands import launch as accelerate
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

from prefcli.checkpoints.saved_choices import with_saved_choices
from prefcli.console import say
from prefcli.errors import ExitCode, PrefcliError, Problem, RecipeError
from prefcli.launcher.accelerate_config import accelerate_config
from prefcli.launcher.agent import Agent, StoppedError, exit_code
from prefcli.launcher.rendezvous import Rendezvous, check_srun_tasks, find_rendezvous
from prefcli.launcher.signal_forwarding import LAUNCHER, SignalForwarder
from prefcli.methods import Method
from prefcli.recipe.defaults import with_strategy
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Launch, need_deepspeed
from prefcli.text import first_line

_RENDEZVOUS_TIMEOUT = 900
"""Seconds a node waits for the others of its job."""


def launch_processes(recipe: Recipe, arguments: Sequence[str], signals: SignalForwarder) -> int:
    """Run `prefcli ARGUMENTS` in the processes of the launch section, and return the exit code.

    recipe: without automatic settings. Raises RecipeError before any process is started,
    PrefcliError if a process was killed.
    """
    launch = recipe.launch
    check_srun_tasks(launch.nodes)
    processes = count_processes(launch)
    rendezvous = find_rendezvous(launch.nodes) if launch.nodes > 1 else None
    os.environ |= worker_environment(recipe, launch, processes)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(_shutdown_signals())
    # This process reports what the agent would log.
    logging.disable(logging.CRITICAL)
    say(_describe(launch, processes, rendezvous))
    agent = Agent(worker_spec(launch, processes, rendezvous, arguments), signals)
    try:
        agent.run()
    except StoppedError:
        return exit_code(None, signals) or ExitCode.REQUEUE
    except SignalException as stop:
        return 128 + stop.sigval
    except (DistError, RendezvousError) as error:
        raise PrefcliError(_rendezvous_problem(error, rendezvous)) from None
    return exit_code(agent.failure, signals)


def resolve_launch(
    recipe: Recipe, method: Method, resume: str, *, allow_unusual: bool
) -> Recipe | None:
    """Return the recipe without automatic settings; None if this process can train it alone.

    Raises RecipeError, DataError and GateError.
    """
    recipe = with_saved_choices(recipe)
    launch, gpus = recipe.launch, torch.cuda.device_count()
    processes = count_processes(launch)
    alone = launch.strategy == "single" or (
        launch.strategy == "auto" and processes * launch.nodes == 1
    )
    if alone and gpus <= 1:
        return None
    if not gpus:
        # The rule for CPUs needs no rows; the workers apply it to the rows per device.
        return with_strategy(recipe, "ddp")
    if launch.strategy != "auto" and recipe.training.per_device_train_batch_size != "auto":
        return recipe
    from prefcli.training.run import choose_launch

    return choose_launch(recipe, method, resume, processes, allow_unusual=allow_unusual)


def count_processes(launch: Launch) -> int:
    """Return the number of processes on this machine."""
    gpus = torch.cuda.device_count()
    if launch.strategy == "single":
        return 1
    if not gpus and launch.strategy not in ("auto", "ddp"):
        raise RecipeError(
            Problem(
                f"{launch.strategy} shards a model over GPUs, and this machine has none",
                path="launch.strategy",
                hint="write auto, which is ddp on CPUs",
                code="ENV003",
            )
        )
    if launch.processes is None and not gpus and launch.strategy == "auto" and launch.nodes == 1:
        return 1
    if launch.processes is None and not gpus:
        raise RecipeError(
            Problem(
                "the default is the number of GPUs, and this machine has none",
                path="launch.processes",
                hint="set it, e.g. launch.processes=2",
                code="ENV003",
            )
        )
    if launch.processes is not None and gpus and launch.processes > gpus:
        raise RecipeError(
            Problem(
                f"{launch.processes} processes need one GPU each, and {gpus} "
                f"{'is' if gpus == 1 else 'are'} visible here",
                path="launch.processes",
                hint=f"set it to {gpus}, or remove it",
                code="ENV003",
            )
        )
    if launch.strategy in ("zero2", "zero3"):
        need_deepspeed("launch.strategy")
    return launch.processes or gpus


def worker_environment(recipe: Recipe, launch: Launch, processes: int) -> dict[str, str]:
    """Return the environment that all workers share."""
    variables = {LAUNCHER: str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:
        # torchrun sets it to 1 and prints a banner; share the cores out instead.
        variables["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    if torch.cuda.device_count():
        # As for one node: the agent handles the rendezvous of several.
        single_node = launch.model_copy(update={"nodes": 1})
        variables = (
            accelerate_environment(accelerate_config(recipe, single_node, processes)) | variables
        )
        # The trainer's arguments set it, after checking what the GPU supports.
        variables.pop("ACCELERATE_MIXED_PRECISION", None)
        # It holds the current folder, for DeepSpeed: a file there could shadow a library.
        variables.pop("PYTHONPATH", None)
    return variables


def accelerate_environment(config: dict[str, object]) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for its processes, from its own code."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.yaml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        argv = ["--config_file", str(file), "-m", "prefcli"]
        args = accelerate.launch_command_parser().parse_args(argv)
        args, defaults, _ = accelerate._validate_launch_command(args)
    before = dict(os.environ)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(
            [*defaults.deepspeed_config, "mixed_precision"]
        )
        _, variables = accelerate.prepare_deepspeed_cmd_env(args)
    else:
        variables = accelerate.prepare_multi_gpu_env(args)
    if not accelerate.check_cuda_p2p_ib_support():
        variables |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    return {name: value for name, value in variables.items() if before.get(name) != value}


def _shutdown_signals() -> list[str]:
    """Return the signals on which the agent itself ends its workers."""
    candidates = (signal.SIGHUP, signal.SIGQUIT)
    return [number.name for number in candidates if signal.getsignal(number) != signal.SIG_IGN]


def worker_spec(
    launch: Launch, processes: int, rendezvous: Rendezvous | None, arguments: Sequence[str]
) -> WorkerSpec:
    """Return what the agent needs to start `prefcli ARGUMENTS` in each process of this node."""
    if rendezvous is None:
        # The agent listens on a free port and passes it on open, so that no one else can take it.
        parameters = RendezvousParameters(
            "c10d", "localhost:0", str(uuid.uuid4()), 1, 1, local_addr="127.0.0.1"
        )
    else:
        parameters = RendezvousParameters(
            "static",
            f"{rendezvous.address}:{rendezvous.port}",
            rendezvous.job,
            launch.nodes,
            launch.nodes,
            rank=rendezvous.node,
            timeout=_RENDEZVOUS_TIMEOUT,
        )
    # Start workers as this process was started: only `-m` searches the current folder first.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return WorkerSpec(
        role="worker",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=("-u", *([] if by_module else ["-P"]), "-m", "prefcli", *arguments),
        rdzv_handler=rendezvous_registry.get_rendezvous_handler(parameters),
        max_restarts=0,
        monitor_interval=0.1,
        master_addr=rendezvous.address if rendezvous else None,
        master_port=rendezvous.port if rendezvous else None,
        local_addr=None if rendezvous else "127.0.0.1",
    )


def _describe(launch: Launch, processes: int, rendezvous: Rendezvous | None) -> str:
    local = f"launch: {processes} process{'es' * (processes > 1)}, {launch.strategy}"
    if rendezvous is None:
        return local
    return (
        f"{local}, node {rendezvous.node} of 0 to {launch.nodes - 1}, "
        f"rendezvous at {rendezvous.address}:{rendezvous.port}"
    )


def _rendezvous_problem(error: Exception, rendezvous: Rendezvous | None) -> Problem:
    first = first_line(error)
    if rendezvous is None:
        return Problem(f"the processes could not be started: {first}", code="ENV004")
    return Problem(
        f"the nodes did not connect at {rendezvous.address}:{rendezvous.port}: {first}",
        path="launch.nodes",
        hint="check on every node that the host name resolves and that the port is free and open; "
        "set MASTER_ADDR and MASTER_PORT to use others",
        code="ENV004",
    )
