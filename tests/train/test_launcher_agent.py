"""torchrun's agent as we start it, over workers of a few lines: who failed, and with what code."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from prefcli.errors import PrefcliError
from prefcli.launcher import launch as starting
from prefcli.launcher.agent import Agent, WorkerExit, exit_code
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.recipe.sections import Launch

BEGIN = """
import os, signal, subprocess, sys, time
from prefcli import first_failure
rank = int(os.environ["RANK"])
def wait():
    time.sleep(60)
"""


class Started:
    """The end of a launch: `failure`, the exit code (or what is said instead), the seconds."""

    def __init__(self, agent: Agent, signals: SignalForwarder, seconds: float) -> None:
        self.failure, self.seconds = agent.failure, seconds
        try:
            self.code: int | None = int(exit_code(agent.failure, signals))
            self.said = ""
        except PrefcliError as error:
            self.code, self.said = None, str(error)


@pytest.fixture
def launched(monkeypatch):
    """Two workers of some lines; meanwhile: what happens to this process, the launcher."""
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGQUIT")
    logging.disable(logging.CRITICAL)
    quit_handler = signal.getsignal(signal.SIGQUIT)
    # A shell's background jobs, as a test run may be one, are born deaf to it.
    interrupt_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = SignalForwarder()

    def run(lines: str, meanwhile=None) -> Started:
        spec = starting._worker_spec(Launch(), 2, None, [])
        spec.args = ("-c", BEGIN + lines)
        agent = Agent(spec, signals)
        begun = time.monotonic()
        if meanwhile is not None:
            threading.Thread(target=meanwhile).start()
        agent.run()
        return Started(agent, signals, time.monotonic() - begun)

    yield run
    signals.restore()
    signal.signal(signal.SIGQUIT, quit_handler)
    signal.signal(signal.SIGINT, interrupt_handler)
    logging.disable(logging.NOTSET)
    assert not list(Path(tempfile.gettempdir()).glob(f"prefcli-*-{os.getpid()}-*"))


def test_all_went_well(launched):
    done = launched("sys.exit(0)")
    assert (done.failure, done.code) == (None, 0)


def test_a_code_of_ours_is_everybodys(launched, monkeypatch):
    """The other one, which waits for ever, is ended."""
    monkeypatch.setattr("prefcli.launcher.agent._GRACE_AFTER_ERROR", 0.5)
    done = launched("""
if rank == 1:
    first_failure.first_to_fail()
    sys.exit(4)
wait()
""")
    assert (done.failure, done.code) == (WorkerExit(1, 4), 4)
    assert done.seconds < 5


def test_who_claimed_the_word_failed_first(launched):
    """Whoever the agent finds first."""
    done = launched("""
if rank == 1:
    first_failure.first_to_fail()
    time.sleep(0.5)
    sys.exit(5)
while not first_failure.another_failed():
    time.sleep(0.01)
sys.exit(1)
""")
    assert done.code == 5


def test_a_verdict_of_all_leaves_time_to_write_it_down(launched, tmp_path):
    done = launched(f"""
if rank == 1:
    first_failure.first_to_fail()
    sys.exit(75)
time.sleep(1.5)
open({str(tmp_path / "report")!r}, "w").close()
sys.exit(75)
""")
    assert done.code == 75
    assert (tmp_path / "report").exists()


def test_a_killed_worker_is_the_cause_of_what_follows(launched, tmp_path):
    """Its fellow learns that it is gone, and so says nothing of its own."""
    done = launched(f"""
if rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
while not first_failure.another_failed():
    time.sleep(0.01)
open({str(tmp_path / "heard")!r}, "w").close()
sys.exit(1)
""")
    assert done.failure == WorkerExit(0, -9)
    assert done.said.startswith("rank 0 was killed by signal 9 (Killed) [ENV001]")
    assert (tmp_path / "heard").exists()


def test_what_workers_have_started_ends_with_them(launched, tmp_path):
    child = tmp_path / "child"
    launched(f"""
if rank == 0:
    child = subprocess.Popen(["sleep", "60"])
    open({str(child)!r}, "w").write(str(child.pid))
    sys.exit(2)
""")
    pid = int(child.read_text())
    until = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(pid)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def to_this_process(number: int, when: Path):
    def send():
        while len(list(when.glob("ready-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_worker(launched, tmp_path, number):
    done = launched(
        f"""
def save(number, frame):
    open(os.path.join({str(tmp_path)!r}, f"saved-{{rank}}-{{number}}"), "w").close()
    sys.exit(75)
signal.signal({int(number)}, save)
open(os.path.join({str(tmp_path)!r}, f"ready-{{rank}}"), "w").close()
wait()
""",
        to_this_process(number, tmp_path),
    )
    assert done.code == 75
    saved = {path.name for path in tmp_path.glob("saved-*")}
    assert saved == {f"saved-{rank}-{int(number)}" for rank in (0, 1)}


def test_a_signal_to_workers_that_do_not_listen_yet(launched, tmp_path):
    ready = f'open(os.path.join({str(tmp_path)!r}, f"ready-{{rank}}"), "w").close()\nwait()'
    done = launched(ready, to_this_process(signal.SIGTERM, tmp_path))
    assert done.code == 75


def test_interrupted(launched, tmp_path):
    ready = f'open(os.path.join({str(tmp_path)!r}, f"ready-{{rank}}"), "w").close()\nwait()'
    done = launched(ready, to_this_process(signal.SIGINT, tmp_path))
    assert done.code == 130


# What the accelerate that is installed makes of a configuration is in test_launch_config.py.


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert starting._environment(None, Launch(), 4)["OMP_NUM_THREADS"] == "4"
    assert starting._environment(None, Launch(), 32)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in starting._environment(None, Launch(), 4)


@pytest.mark.parametrize(
    ("launch", "gpus", "message"),
    [
        ({}, 0, "launch.processes: the default is the number of GPUs"),
        ({"strategy": "fsdp2", "processes": 2}, 0, "fsdp2 shards a model over GPUs"),
        ({"processes": 4}, 2, "4 processes need one GPU each, and 2 are visible here"),
        ({"strategy": "zero3"}, 2, r"pip install 'prefcli\[deepspeed\]'"),
    ],
)
def test_what_this_machine_can_not_do(monkeypatch, launch, gpus, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("prefcli.recipe.sections.training.find_spec", lambda name: None)
    with pytest.raises(PrefcliError, match=message) as stop:
        starting._processes(Launch.model_validate(launch))
    assert stop.value.exit_code == 2


def test_left_out_it_is_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert starting._processes(Launch(strategy="fsdp2")) == 8


def test_a_worker_whose_launcher_is_gone_does_not_begin():
    environment = {**os.environ, "PREFCLI_LAUNCHER": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "prefcli", "--version"], env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_launcher_that_dies_takes_its_workers_along():
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
    found = psutil.Process(int(started.stdout.readline()))
    assert started.stdout.readline() == "tied\n"
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs([found], timeout=10)
    assert not alive
