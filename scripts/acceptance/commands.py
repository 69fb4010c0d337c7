"""prefcli as a separate command that can be stopped and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Command:
    """`python -m prefcli ...` whose output goes to a file."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
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
