"""torchelastic's agent with small workers: which worker failed first, and the exit code."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from prefcli.errors import PrefcliError
from prefcli.launcher.agent import Agent, WorkerExit, exit_code
from prefcli.launcher.launch import count_processes, worker_environment, worker_spec
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.recipe.sections import Launch

WORKER = """
import os, signal, subprocess, sys, time
from prefcli import first_failure
rank = int(os.environ["RANK"])
pipe = os.environ["PIPE"]
def wait():
    time.sleep(60)
"""


class Result:
    """The end of a launch: the first failure, and the exit code or the error's code."""

    def __init__(self, agent: Agent, signals: SignalForwarder) -> None:
        self.failure = agent.failure
        self.exit_code: int | None = None
        self.error_code: str | None = None
        self.message = ""
        try:
            self.exit_code = int(exit_code(agent.failure, signals))
        except PrefcliError as error:
            self.error_code = error.problems[0].code
            self.message = error.problems[0].message


@pytest.fixture
def pipe(monkeypatch, tmp_path) -> Path:
    """A named pipe, which workers know as `pipe`."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setenv("PIPE", str(path))
    return path


@pytest.fixture
def launched(monkeypatch, pipe) -> Iterator[Callable[..., Result]]:
    """Runs two workers with the given code, and a function of the launcher at the same time."""
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGQUIT")
    logging.disable(logging.CRITICAL)
    markers = _markers()
    quit_handler = signal.getsignal(signal.SIGQUIT)
    # Background jobs of a shell ignore SIGINT, and this test run may be one.
    interrupt_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = SignalForwarder()

    def run(code: str, meanwhile: Callable[[], None] | None = None, **grace: float) -> Result:
        spec = worker_spec(Launch(), 2, None, [])
        spec.args = ("-c", WORKER + code)
        agent = Agent(spec, signals, **grace)
        if meanwhile is not None:
            threading.Thread(target=meanwhile).start()
        agent.run()
        return Result(agent, signals)

    yield run
    signals.restore()
    signal.signal(signal.SIGQUIT, quit_handler)
    signal.signal(signal.SIGINT, interrupt_handler)
    logging.disable(logging.NOTSET)
    assert _markers() <= markers


def _markers() -> set[Path]:
    """Return the files by which workers of this process say that they failed first."""
    return set(Path(tempfile.gettempdir()).glob(f"prefcli-*-{os.getpid()}-*"))


def test_agent_success_has_no_failure(launched):
    result = launched("sys.exit(0)")
    assert (result.failure, result.exit_code) == (None, 0)


def test_agent_exit_code_of_one_worker_ends_the_other(launched):
    result = launched(
        """
if rank == 1:
    first_failure.first_to_fail()
    sys.exit(4)
wait()
""",
        grace_after_error=0.5,
    )
    assert (result.failure, result.exit_code) == (WorkerExit(1, 4), 4)


def test_agent_worker_with_the_marker_failed_first(launched):
    """Rank 0 exits before rank 1, but because of it."""
    result = launched("""
if rank == 1:
    first_failure.first_to_fail()
    open(pipe).read()  # until rank 0 has ended
    sys.exit(5)
held_until_exit = open(pipe, "w")
sys.exit(1)
""")
    assert result.exit_code == 5


def test_agent_exit_code_of_prefcli_leaves_time_to_write(launched, tmp_path):
    report = tmp_path / "report"
    result = launched(
        f"""
if rank == 1:
    first_failure.first_to_fail()
    held_until_exit = open(pipe, "w")
    sys.exit(75)
open(pipe).read()  # until rank 1 has ended
open({str(report)!r}, "w").close()
sys.exit(75)
""",
        grace_after_error=60,
        grace_after_crash=0,
    )
    assert result.exit_code == 75
    assert report.exists()


def test_agent_killed_worker_is_the_first_failure(launched, tmp_path):
    noticed = tmp_path / "noticed"
    result = launched(
        f"""
if rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
while not first_failure.another_failed():
    os.sched_yield()
open({str(noticed)!r}, "w").close()
sys.exit(1)
""",
        grace_after_crash=60,
    )
    assert result.failure == WorkerExit(0, -9)
    assert result.error_code == "ENV001"
    assert result.message == "rank 0 was killed by signal 9 (Killed)"
    assert noticed.exists()


def test_agent_failure_ends_the_children_of_workers(launched, pipe):
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    launched("""
if rank == 0:
    subprocess.Popen(["sleep", "60"], stdout=open(pipe, "w"))
    sys.exit(2)
""")
    assert select.select([reader], [], [], 30)[0]  # the end of file: no process writes to it
    assert os.read(reader, 1) == b""
    os.close(reader)


READY = """
with open(pipe, "w") as ready:
    ready.write("r")
wait()
"""


def send_when_ready(number: int, pipe: Path) -> Callable[[], None]:
    """Return a function that signals this process once both workers have written to the pipe."""

    def send() -> None:
        reader = os.open(pipe, os.O_RDWR)  # open for writing too, so that it has no end
        for _ in range(2):
            os.read(reader, 1)
        os.close(reader)
        os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_agent_signal_reaches_every_worker(launched, tmp_path, pipe, number):
    result = launched(
        f"""
def save(number, frame):
    open(os.path.join({str(tmp_path)!r}, f"saved-{{rank}}-{{number}}"), "w").close()
    sys.exit(75)
signal.signal({int(number)}, save)
{READY}
""",
        send_when_ready(number, pipe),
    )
    assert result.exit_code == 75
    saved = {path.name for path in tmp_path.glob("saved-*")}
    assert saved == {f"saved-{rank}-{int(number)}" for rank in (0, 1)}


def test_agent_signal_before_workers_handle_it_requeues(launched, pipe):
    assert launched(READY, send_when_ready(signal.SIGTERM, pipe)).exit_code == 75


def test_agent_interrupt_exits_with_130(launched, pipe):
    assert launched(READY, send_when_ready(signal.SIGINT, pipe)).exit_code == 130


def test_worker_environment_shares_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert worker_environment(None, Launch(), 4)["OMP_NUM_THREADS"] == "4"
    assert worker_environment(None, Launch(), 32)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in worker_environment(None, Launch(), 4)


@pytest.mark.parametrize(
    ("launch", "gpus", "path", "code"),
    [
        ({"strategy": "fsdp2", "processes": 2}, 0, "launch.strategy", "ENV003"),
        ({"processes": 4}, 2, "launch.processes", "ENV003"),
        ({"strategy": "zero3"}, 2, "launch.strategy", "RCP029"),
    ],
)
def test_count_processes_that_do_not_fit_are_refused(monkeypatch, launch, gpus, path, code):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("prefcli.recipe.sections.training.find_spec", lambda name: None)
    with pytest.raises(PrefcliError) as stop:
        count_processes(Launch.model_validate(launch))
    (problem,) = stop.value.problems
    assert (problem.path, problem.code, stop.value.exit_code) == (path, code, 2)


def test_count_processes_default_is_one_per_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert count_processes(Launch(strategy="fsdp2")) == 8


def test_worker_without_its_launcher_does_not_start():
    environment = {**os.environ, "PREFCLI_LAUNCHER": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "prefcli", "--version"], env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_worker_of_a_killed_launcher_ends():
    worker = (
        "import time; from prefcli.launcher import signal_forwarding; "
        "signal_forwarding.end_with_launcher(); "
        "print('tied', flush=True); time.sleep(60)"
    )
    launcher = (
        "import os, subprocess, sys; os.environ['PREFCLI_LAUNCHER'] = str(os.getpid()); "
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}]); "
        "print(worker.pid, flush=True); worker.wait()"
    )
    started = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(started.stdout.readline()))
    assert started.stdout.readline() == "tied\n"
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs([process], timeout=10)
    assert not alive
