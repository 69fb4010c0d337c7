"""Two forked processes on this machine, in the environment that a launcher sets."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.distributed import DebugLevel

_TIMEOUT = 240


@dataclass(frozen=True)
class Ended:
    """How the processes ended, by rank."""

    codes: list[int]
    logs: list[str]
    """Standard output and error of each rank."""


def in_processes(
    jobs: Sequence[Callable[[], object]],
    logs: Path,
    count: int = 2,
    *,
    compare_collectives: bool = False,
) -> Ended:
    """Run the jobs one after the other in forked processes, each in a new process group.

    A job that exits or raises ends its process.
    compare_collectives: a process that calls another collective than the others, or one of another
    shape, raises, as with TORCH_DISTRIBUTED_DEBUG=DETAIL. gloo might not notice, and NCCL waits.
    """
    ports = [free_port() for _ in jobs]
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"rank{rank}.log" for rank in range(count)]
    sys.stdout.flush()
    sys.stderr.flush()
    if compare_collectives:
        jobs = [functools.partial(_with_compared_collectives, job) for job in jobs]
    children = {_fork(rank, count, jobs, ports, files[rank]): rank for rank in range(count)}
    codes = _wait(children)
    return Ended(codes, [file.read_text("utf-8") for file in files])


def _fork(
    rank: int, count: int, jobs: Sequence[Callable[[], object]], ports: list[int], log: Path
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _leave_pytest(log)
        for job, port in zip(jobs, ports, strict=True):
            _join(rank, count, port)
            job()
            _leave()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_pytest(log: Path) -> None:
    """Give a forked process its own output, signals and threads."""
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # pytest has replaced them.
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # A forked process has torch replace its pool of threads at the first use. That is not safe
    # from the threads with which transformers loads weights, so do it here.
    torch.set_num_threads(torch.get_num_threads())


class Forked:
    """A forked process in a new session, with what tests need of Popen's interface.

    It has imported everything, which takes a new process longer than most jobs.
    """

    def __init__(self, job: Callable[[], object], log: Path) -> None:
        read, write = os.pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(job, log, read, write))
        self._process.start()
        os.close(read)
        self.stdin = open(write, "wb")  # noqa: SIM115
        self.pid = self._process.pid

    @staticmethod
    def _run(job: Callable[[], object], log: Path, read: int, write: int) -> None:
        os.setsid()
        os.dup2(read, 0)
        os.close(write)
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
        _leave_pytest(log)
        _forget()
        job()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self._process.exitcode


def _with_compared_collectives(job: Callable[[], object]) -> None:
    """Run the job with a process group that compares the calls of all processes.

    DDP of torch 2.13 ends with a segmentation fault where it logs such a group.
    """
    torch.distributed.set_debug_level(DebugLevel.DETAIL)
    with mock.patch.object(torch.distributed.Logger, "set_construction_data_and_log"):
        job()


def _join(rank: int, count: int, port: int) -> None:
    _forget()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _forget() -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    GradientState._reset_state()


def _wait(children: dict[int, int]) -> list[int]:
    """Return the exit codes by rank; kill the processes that are alive after `_TIMEOUT`."""
    alarm = threading.Timer(_TIMEOUT, _kill, [children])
    alarm.start()
    try:
        codes = [0] * len(children)
        for child, rank in children.items():
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        alarm.cancel()
    return codes


def _kill(children: Iterable[int]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def free_port() -> int:
    """Return a free port below the range from which the kernel assigns ephemeral ports."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
