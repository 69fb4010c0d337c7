"""prefcli in a separate process that can be stopped and started again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from scripts.acceptance import adapter

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
"""What a launcher sets for the only process of a run."""


class _Fork:
    """A forked process that has imported everything, with the interface of Popen."""

    def __init__(self, words: list[str], log: Path, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(words, log, environment))
        self._process.start()

    @staticmethod
    def _run(words: list[str], log: Path, environment: dict[str, str]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # torch would replace its pool of threads at the first use, which can be in a thread.
        torch.set_num_threads(torch.get_num_threads())
        os.environ |= environment
        os._exit(adapter.run(words, log)["code"])

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


class Command:
    """`python -m prefcli ...` whose output goes to a file."""

    def __init__(
        self, words: list[str], log: Path, *, fork: bool = False, launched: bool = False
    ) -> None:
        """fork: fork this process, which has imported everything, instead of starting another.
        launched: a fork takes the place of the launcher's only process."""
        self.log = log
        self._process: _Fork | subprocess.Popen[bytes]
        if fork:
            port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 10_000)}
            self._process = _Fork(words, log, {**_ALONE, **port} if launched else {})
        else:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefcli", *words],
                stdout=log.open("ab"),
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float) -> int | str:
        """Return the exit code, or a text if the command had to be killed."""
        try:
            return self._process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            return f"not done in {seconds:.0f} s"

    def stop_when(self, ready: Callable[[], bool], seconds: float) -> bool:
        """SIGTERM as soon as that is so; False where the command ended before."""
        ends = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < ends:
            if ready():
                self._process.send_signal(signal.SIGTERM)
                return True
            time.sleep(0.01)
        return False

    def says(self, text: str) -> bool:
        return text in self.log.read_text("utf-8", errors="replace")


def steps_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if "loss" in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((run / "model").glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def largest_difference(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def last_lines(path: Path, count: int = 4) -> str:
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    return " / ".join(lines[-count:])[-500:]
