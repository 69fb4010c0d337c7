"""What a signal does to a command, before and after it has something to lose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from prefcli import cli, preemption
from prefcli.errors import DataError, ExitCode, PreemptedError


@pytest.fixture(autouse=True)
def _listening():
    preemption.install_handlers()
    yield
    preemption.ignore_signals()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_anything_is_half_done_it_ends_the_command(number):
    name = signal.Signals(number).name
    with (
        pytest.raises(PreemptedError, match=rf"preempted \({name}\)") as e,
        preemption.preemption_as_error(),
    ):
        send(number)
    assert e.value.exit_code == ExitCode.REQUEUE == 75
    assert "the same command" in str(e.value)
    send()  # a second one changes nothing
    assert preemption.received_signal() == name


def test_nor_does_one_at_the_very_start_of_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefcli", "recipes"])
    with pytest.raises(SystemExit) as stop:
        cli.main(send)
    assert stop.value.code == ExitCode.REQUEUE
    assert "the same command" in capsys.readouterr().err


def test_no_library_takes_it_for_an_error_of_its_own():
    assert not issubclass(preemption.Stop, Exception)
    assert not issubclass(preemption.BreakOff, Exception)


def test_what_a_library_makes_of_it_is_still_it():
    def library():
        try:
            send()
        except preemption.Stop:
            raise ImportError("half a library") from None

    with pytest.raises(PreemptedError), preemption.preemption_as_error():
        library()
    with pytest.raises(DataError), preemption.preemption_as_error():
        raise DataError("a row is wrong")  # but what we say ourselves stands


def test_later_it_is_remembered():
    preemption.defer_signals()
    assert preemption.received_signal() is None
    send(signal.SIGUSR1)
    send(signal.SIGTERM)
    assert preemption.received_signal() == "SIGUSR1"
    with pytest.raises(OSError, match="disk"), preemption.preemption_as_error():
        raise OSError("the disk is full")  # not the signal's doing


def test_one_that_was_swallowed_comes_again_and_is_found_where_training_begins():
    with pytest.raises(preemption.Stop):
        send()
    with pytest.raises(preemption.Stop):
        time.sleep(5)
    with pytest.raises(preemption.Stop):
        preemption.defer_signals()
    assert not preemption.are_deferred()


def test_the_workers_of_a_pool_die_of_sigterm():
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, b"!")
        time.sleep(20)
        os._exit(0)
    assert os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


WAITING = """
import ctypes, os, sys, threading
from prefcli import preemption
from prefcli import first_failure

preemption.install_handlers()
preemption._TRIES = 1
if "failed" in sys.argv:
    assert first_failure.first_to_fail()  # as the one that this process waits for would say
threading.Timer(0.2, lambda: os.kill(os.getpid(), 15)).start()
lock = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock(lock)
libc.pthread_mutex_lock(lock)  # for ever, and no Python is run here
"""


@pytest.mark.parametrize(("sibling", "code"), [("failed", 143), ("well", 75)])
def test_who_waits_inside_a_library_ends_nevertheless(tmp_path, sibling, code):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", WAITING, sibling]
    ended = subprocess.run(command, env=environment, timeout=20, capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.startswith("preempted") == (code == 75)
