"""The effect of a signal on a command, before and after training starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from prefcli import cli, preemption
from prefcli.errors import DataError, ExitCode, PreemptedError


@pytest.fixture(autouse=True)
def handlers():
    preemption.install_handlers()
    yield
    preemption.ignore_signals()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_before_training_ends_the_command(number):
    name = signal.Signals(number).name
    with pytest.raises(PreemptedError) as e, preemption.preemption_as_error():
        send(number)
    assert e.value.exit_code == ExitCode.REQUEUE == 75
    (problem,) = e.value.problems
    assert problem.code == "RUN001"
    assert name in problem.message
    send()  # a second signal has no effect
    assert preemption.received_signal() == name


def test_signal_at_the_start_of_a_command_exits_with_75(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefcli", "recipes"])
    with pytest.raises(SystemExit) as stop:
        cli.main(send)
    assert stop.value.code == ExitCode.REQUEUE
    assert "Rerun the same command" in capsys.readouterr().err


def test_stop_is_not_an_exception_that_libraries_catch():
    assert not issubclass(preemption.Stop, Exception)
    assert not issubclass(preemption.BreakOff, Exception)


def test_preemption_as_error_after_a_signal_replaces_a_librarys_error():
    def library():
        try:
            send()
        except preemption.Stop:
            raise ImportError("partially initialized module") from None

    with pytest.raises(PreemptedError), preemption.preemption_as_error():
        library()


def test_preemption_as_error_after_a_signal_keeps_prefclis_error():
    with pytest.raises(preemption.Stop):
        send()
    with pytest.raises(DataError), preemption.preemption_as_error():
        raise DataError("a row is wrong", code="DAT001")


def test_deferred_signal_is_only_recorded():
    preemption.defer_signals()
    assert preemption.received_signal() is None
    send(signal.SIGUSR1)
    send(signal.SIGTERM)
    assert preemption.received_signal() == "SIGUSR1"
    with pytest.raises(OSError, match="disk"), preemption.preemption_as_error():
        raise OSError("the disk is full")


def test_swallowed_signal_is_sent_again():
    with pytest.raises(preemption.Stop):
        send()
    with pytest.raises(preemption.Stop):
        threading.Event().wait(timeout=30)


def test_defer_signals_after_a_swallowed_signal_raises_stop():
    with pytest.raises(preemption.Stop):
        send()
    with pytest.raises(preemption.Stop):
        preemption.defer_signals()
    assert not preemption.are_deferred()


def test_forked_process_dies_of_sigterm():
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"!")
        signal.pause()
        os._exit(0)
    assert os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


DEADLOCK = """
import ctypes, os, sys, threading
from prefcli import first_failure, preemption

preemption.install_handlers(attempts=1)
if "failed" in sys.argv:
    assert first_failure.first_to_fail()  # the process that this one waits for
start = threading.Lock()
start.acquire()

def send():
    start.acquire()
    os.kill(os.getpid(), 15)

threading.Thread(target=send, daemon=True).start()
mutex = ctypes.create_string_buffer(64)
# The other thread runs once the last line releases the interpreter lock, not before.
sys.setswitchinterval(60)
ctypes.PyDLL(None).pthread_mutex_lock(mutex)
library = ctypes.CDLL(None)
start.release()
library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("other", "code"), [("failed", 143), ("running", 75)])
def test_signal_in_a_library_that_never_returns_ends_the_process(tmp_path, other, code):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", DEADLOCK, other]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith("preempted") == (code == 75)
