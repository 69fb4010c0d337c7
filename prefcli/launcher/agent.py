"""torchrun's agent, extended to pass through signals and the exit codes of its workers."""

from __future__ import annotations

import inspect
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
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.trl_integration.hooks import Hook, check_hooks

GRACE_AFTER_ERROR = 5.0
"""Seconds the other workers get to end after one has ended with an exit code of prefcli: usually
all of them stop for the same reason, and the main process still writes its report."""
GRACE_AFTER_CRASH = 1.0
"""The same after a crash: the others wait for a process that is gone."""
_TERM_TO_KILL = 15
"""Seconds between SIGTERM and SIGKILL."""
_POLL = 0.05

_AGENT = "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent."
HOOKS = (
    Hook(f"{_AGENT}_start_workers", ("self", "worker_group")),
    Hook(f"{_AGENT}_monitor_workers", ("self", "worker_group")),
    Hook(f"{_AGENT}_pcontext", set_by="__init__"),
    Hook("accelerate.commands.launch._validate_launch_command", ("args",)),
)
"""Private names that the launcher relies on, apart from those in trl_compat.py."""

check_hooks(HOOKS)


@dataclass(frozen=True)
class WorkerExit:
    """The worker that failed first. code: as in subprocess, negative for a signal."""

    rank: int
    code: int


class StoppedError(Exception):
    """A signal arrived before any worker was started."""


def _shutdown_timeout() -> dict[str, Any]:
    """The argument for LocalElasticAgent; torch 2.11 has none, and waits 30 seconds."""
    given = "shutdown_timeout" in inspect.signature(LocalElasticAgent.__init__).parameters
    return {"shutdown_timeout": _TERM_TO_KILL} if given else {}


class Agent(LocalElasticAgent):
    """Starts the workers once and waits; `failure` is the one that failed first, if any."""

    def __init__(
        self,
        spec: WorkerSpec,
        signals: SignalForwarder,
        *,
        grace_after_error: float = GRACE_AFTER_ERROR,
        grace_after_crash: float = GRACE_AFTER_CRASH,
    ) -> None:
        # Workers write to this process's own streams; no log files.
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), **_shutdown_timeout())
        self.failure: WorkerExit | None = None
        self._signals = signals
        self._grace_after_error = grace_after_error
        self._grace_after_crash = grace_after_crash
        self._exits: dict[int, int] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._signals.received:
            raise StoppedError
        workers: dict[int, Any] = super()._start_workers(worker_group)
        self._signals.send_to(workers.values())
        return workers

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._record_exits()
        failed = [WorkerExit(rank, code) for rank, code in self._exits.items() if code]
        if failed:
            self._end_the_others(failed[0])
        elif (self._signals.interrupted or 0) > _TERM_TO_KILL:
            self._workers.close(signal.SIGTERM, timeout=1)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    @property
    def _workers(self) -> SubprocessContext:
        assert isinstance(self._pcontext, SubprocessContext)
        return self._pcontext

    def _record_exits(self) -> None:
        """Record the exit codes of workers that have ended, in the order that polling sees."""
        for local, handler in self._workers.subprocess_handlers.items():
            rank = int(self._workers.envs[local]["RANK"])
            if rank not in self._exits and (code := handler.proc.poll()) is not None:
                self._exits[rank] = code

    def _end_the_others(self, first: WorkerExit) -> None:
        marker = FailureMarker(self._workers.envs[0])
        if first.code < 0:
            marker.create_for(first.rank)  # a killed process could not
        grace = (
            self._grace_after_error
            if first.code in set(ExitCode) - {ExitCode.BUG}
            else self._grace_after_crash
        )
        until = time.monotonic() + grace
        while len(self._exits) < self._workers.nprocs and time.monotonic() < until:
            time.sleep(_POLL)
            self._record_exits()
        # Nothing here has killed a worker yet, so a death by signal is the cause of the rest.
        killed = [WorkerExit(rank, code) for rank, code in self._exits.items() if code < 0]
        marked_rank = marker.rank
        self.failure = first
        if killed:
            self.failure = killed[0]
        elif marked_rank is not None and self._exits.get(marked_rank):
            self.failure = WorkerExit(marked_rank, self._exits[marked_rank])
        self._workers.close(signal.SIGTERM, timeout=_TERM_TO_KILL)
        marker.remove()
        self._kill_process_groups()

    def _kill_process_groups(self) -> None:
        """Kill the children of the workers, such as processes that convert rows."""
        for worker in self._workers.pids().values():
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)


def exit_code(failure: WorkerExit | None, signals: SignalForwarder) -> int:
    """Return the exit code of this process. Raises PrefcliError if a worker was killed."""
    if signal.SIGINT in signals.received:
        return 128 + signal.SIGINT
    if failure is None:
        return ExitCode.DONE
    if failure.code >= 0:
        return failure.code
    if -failure.code in signals.received:
        # Forwarded before the worker could handle it, so it had not trained yet.
        return ExitCode.REQUEUE
    number = -failure.code
    raise PrefcliError(
        f"rank {failure.rank} was killed by signal {number} ({signal.strsignal(number)})",
        code="ENV001" if number == signal.SIGKILL else "ENV002",
        hint="check `dmesg` or the job's accounting for an out-of-memory kill; rerun the same "
        "command to resume from the last checkpoint, if there is one"
        if number == signal.SIGKILL
        else "rerun with `python -X faulthandler` to see which library crashed",
    )
