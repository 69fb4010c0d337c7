"""The processes of a launch section, from their environment to their exit code."""

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
from torch.distributed.elastic.rendezvous import registry as rendezvous

from prefcli.console import say
from prefcli.errors import ExitCode, PrefcliError, Problem, RecipeError
from prefcli.launcher.accelerate_config import accelerate_config
from prefcli.launcher.agent import Agent, StoppedError, exit_code
from prefcli.launcher.rendezvous import Rendezvous, meeting, refuse_copies
from prefcli.launcher.signal_forwarding import Signals
from prefcli.launcher.worker import LAUNCHER
from prefcli.recipe.launch import Launch, need_deepspeed
from prefcli.recipe.schema import Recipe

_TO_MEET = 900
"""Seconds a machine waits for the others of its job."""


def start(recipe: Recipe, launch: Launch, words: Sequence[str], signals: Signals) -> int:
    """Run `prefcli` with these words in the processes of the launch section; its exit code.

    Raises RecipeError before anything is started, PrefcliError where a process was killed.
    """
    refuse_copies(launch.nodes)
    processes = _processes(launch)
    where = meeting(launch.nodes) if launch.nodes > 1 else None
    os.environ |= _environment(recipe, launch, processes)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(_ends_all())
    # Whatever the agent has to say, this process says in its own words.
    logging.disable(logging.CRITICAL)
    say(_in_words(launch, processes, where))
    agent = Agent(_spec(launch, processes, where, words), signals)
    try:
        agent.run()
    except StoppedError:
        return exit_code(None, signals) or ExitCode.REQUEUE
    except SignalException as stop:
        return 128 + stop.sigval
    except (DistError, RendezvousError) as error:
        raise PrefcliError(_lost(error, where)) from None
    return exit_code(agent.failure, signals)


def _processes(launch: Launch) -> int:
    """On this machine."""
    gpus = torch.cuda.device_count()
    if not gpus and launch.strategy != "ddp":
        raise RecipeError(
            Problem(
                f"{launch.strategy} shards a model over GPUs, and this machine has none",
                path="launch.strategy",
                hint="ddp runs on CPUs too",
            )
        )
    if launch.processes is None and not gpus:
        raise RecipeError(
            Problem(
                "left out, it is the number of GPUs, and this machine has none",
                path="launch.processes",
                hint="write launch.processes, as in launch.processes=2",
            )
        )
    if launch.processes is not None and gpus and launch.processes > gpus:
        raise RecipeError(
            Problem(
                f"{launch.processes} processes need a GPU each, and {gpus} "
                f"{'is' if gpus == 1 else 'are'} visible here",
                path="launch.processes",
                hint=f"write {gpus}, or leave it out",
            )
        )
    if launch.strategy in ("zero2", "zero3"):
        need_deepspeed("launch.strategy")
    return launch.processes or gpus


def _environment(recipe: Recipe, launch: Launch, processes: int) -> dict[str, str]:
    """Of the workers, beside what the agent tells each of them."""
    found = {
        LAUNCHER: str(os.getpid()),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        # torchrun makes it 1, with a banner; the cores that torch would take are shared out.
        found["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    if torch.cuda.device_count():
        # On one machine: where several meet is the agent's affair, and nobody else's.
        one = launch.model_copy(update={"nodes": 1})
        found = accelerate_environment(accelerate_config(recipe, one, processes)) | found
        # The trainer's own options say it, which know whether the GPU can.
        found.pop("ACCELERATE_MIXED_PRECISION", None)
        # The current folder, for DeepSpeed: a file there could pass for one of the libraries.
        found.pop("PYTHONPATH", None)
    return found


def accelerate_environment(config: dict[str, object]) -> dict[str, str]:
    """What `accelerate launch` sets for its processes, by its own code."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.yaml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        words = ["--config_file", str(file), "-m", "prefcli"]
        args = accelerate.launch_command_parser().parse_args(words)
        args, defaults, _ = accelerate._validate_launch_command(args)
    before = dict(os.environ)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(
            [*defaults.deepspeed_config, "mixed_precision"]
        )
        _, found = accelerate.prepare_deepspeed_cmd_env(args)
    else:
        found = accelerate.prepare_multi_gpu_env(args)
    if not accelerate.check_cuda_p2p_ib_support():
        found |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    return {name: value for name, value in found.items() if before.get(name) != value}


def _ends_all() -> list[str]:
    """Signals that the agent itself takes for the end of its workers."""
    both = (signal.SIGHUP, signal.SIGQUIT)
    return [each.name for each in both if signal.getsignal(each) != signal.SIG_IGN]


def _spec(
    launch: Launch, processes: int, where: Rendezvous | None, words: Sequence[str]
) -> WorkerSpec:
    if where is None:
        # The agent listens on a free port, and hands it on open: nobody can take it between.
        parameters = RendezvousParameters(
            "c10d", "localhost:0", str(uuid.uuid4()), 1, 1, local_addr="127.0.0.1"
        )
    else:
        parameters = RendezvousParameters(
            "static",
            f"{where.address}:{where.port}",
            where.job,
            launch.nodes,
            launch.nodes,
            rank=where.machine,
            timeout=_TO_MEET,
        )
    # As this process was started: -m looks into the current folder first, a script does not.
    by_module = Path(sys.argv[0]).name == "__main__.py"
    return WorkerSpec(
        role="worker",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=("-u", *([] if by_module else ["-P"]), "-m", "prefcli", *words),
        rdzv_handler=rendezvous.get_rendezvous_handler(parameters),
        max_restarts=0,
        monitor_interval=0.1,
        master_addr=where.address if where else None,
        master_port=where.port if where else None,
        local_addr=None if where else "127.0.0.1",
    )


def _in_words(launch: Launch, processes: int, where: Rendezvous | None) -> str:
    here = f"launch: {processes} process{'es' * (processes > 1)}, {launch.strategy}"
    if where is None:
        return here
    return (
        f"{here}, on machine {where.machine} of 0 to {launch.nodes - 1}; "
        f"they meet at {where.address}:{where.port}"
    )


def _lost(error: Exception, where: Rendezvous | None) -> Problem:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if where is None:
        return Problem(f"the processes could not be started: {first}")
    return Problem(
        f"the machines did not meet at {where.address}:{where.port}: {first}",
        path="launch.nodes",
        hint="is that host's name known, and the port free and open, on every machine? MASTER_ADDR "
        "and MASTER_PORT name others",
    )
