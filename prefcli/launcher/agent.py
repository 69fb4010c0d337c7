"""torchrun's agent, with the exit codes and the signals of its workers passed through."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext

from prefcli.errors import ExitCode, PrefcliError
from prefcli.first_failure import FailureMarker
from prefcli.launcher.signal_forwarding import Signals

_TO_LEAVE = 5.0
"""Seconds the others get to end by themselves after one has ended with a code of ours: a verdict is
often everybody's, and the main process has a report to write."""
_TO_FAIL = 1.0
"""The same after a crash: what they wait for will never come."""
_TO_STOP = 15
"""Seconds between SIGTERM and SIGKILL to those that are still there."""
_POLL = 0.05


@dataclass(frozen=True)
class Ended:
    """The first to fail; code: as subprocess has it, negative for a signal."""

    rank: int
    code: int


class StoppedError(Exception):
    """A signal came before there was any worker."""


class Agent(LocalElasticAgent):
    """Starts the workers once and waits for them; `failure` tells why they ended."""

    def __init__(self, spec: WorkerSpec, signals: Signals) -> None:
        # Workers write to this process's own streams, and no files are left behind.
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), shutdown_timeout=_TO_STOP)
        self.failure: Ended | None = None
        self._signals = signals
        self._ended: dict[int, int] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._signals.received:
            raise StoppedError
        found: dict[int, Any] = super()._start_workers(worker_group)
        self._signals.send_to(found.values())
        return found

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._look()
        failed = [Ended(rank, code) for rank, code in self._ended.items() if code]
        if failed:
            self._end_the_others(failed[0])
        elif (self._signals.interrupted or 0) > _TO_STOP:
            self._workers.close(signal.SIGTERM, timeout=1)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    @property
    def _workers(self) -> SubprocessContext:
        assert isinstance(self._pcontext, SubprocessContext)
        return self._pcontext

    def _look(self) -> None:
        """Who has ended since, in the order of their ends as far as one can tell."""
        for local, handler in self._workers.subprocess_handlers.items():
            rank = int(self._workers.envs[local]["RANK"])
            if rank not in self._ended and (code := handler.proc.poll()) is not None:
                self._ended[rank] = code

    def _end_the_others(self, first: Ended) -> None:
        claim = FailureMarker(self._workers.envs[0])
        if first.code < 0:
            claim.make_for(first.rank)  # it can't say so itself
        patience = _TO_LEAVE if first.code in set(ExitCode) - {ExitCode.BUG} else _TO_FAIL
        until = time.monotonic() + patience
        while len(self._ended) < self._workers.nprocs and time.monotonic() < until:
            time.sleep(_POLL)
            self._look()
        # A death by signal up to here is nobody's doing here, and the cause of whatever else.
        killed = [Ended(rank, code) for rank, code in self._ended.items() if code < 0]
        told = claim.rank
        self.failure = first
        if killed:
            self.failure = killed[0]
        elif told is not None and self._ended.get(told):
            self.failure = Ended(told, self._ended[told])
        self._workers.close(signal.SIGTERM, timeout=_TO_STOP)
        claim.remove()
        self._end_what_they_started()

    def _end_what_they_started(self) -> None:
        """Each worker leads a group of its own: those that convert rows for it, say."""
        for worker in self._workers.pids().values():
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)


def exit_code(failure: Ended | None, signals: Signals) -> int:
    """For this process. Raises PrefcliError where a worker was killed."""
    if signal.SIGINT in signals.received:
        return 128 + signal.SIGINT
    if failure is None:
        return ExitCode.DONE
    if failure.code >= 0:
        return failure.code
    if -failure.code in signals.received:
        # Passed on before the worker could listen: nothing was trained since the last checkpoint.
        return ExitCode.REQUEUE
    number = -failure.code
    raise PrefcliError(
        f"rank {failure.rank} was killed by signal {number} ({signal.strsignal(number)})",
        hint="out of memory? `dmesg` or the job's accounting tells. The same command goes on from "
        "the last checkpoint, if there is one"
        if number == signal.SIGKILL
        else "a crash inside a library; `python -X faulthandler` shows where",
    )
