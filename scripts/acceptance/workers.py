"""Many short runs of prefcli at once."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).parents[1] / "gpu_acceptance.py"


@dataclass(frozen=True)
class Job:
    """One run."""

    words: tuple[str, ...]
    log: Path
    on_cpu: bool = False


class Workers:
    """Processes that have imported everything; without any, runs are done in this one."""

    def __init__(self, gpu: int, cpu: int) -> None:
        self._processes = [(_started(on_cpu=False), False) for _ in range(gpu)]
        self._processes += [(_started(on_cpu=True), True) for _ in range(cpu)]

    def run(self, jobs: list[Job], seconds: Callable[[], float]) -> dict[Job, dict[str, Any]]:
        """Return the result of each job that found time and a worker."""
        results: dict[Job, dict[str, Any]] = {}
        if not self._processes:
            from scripts.acceptance import adapter

            for job in jobs:
                if seconds() > 2:
                    results[job] = adapter.run(list(job.words), job.log)
            return results
        waiting: dict[bool, queue.SimpleQueue[Job]] = {
            False: queue.SimpleQueue(),
            True: queue.SimpleQueue(),
        }
        for job in jobs:
            waiting[job.on_cpu].put(job)

        def serve(process: subprocess.Popen[str], on_cpu: bool) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            while seconds() > 5:
                try:
                    job = waiting[on_cpu].get_nowait()
                except queue.Empty:
                    return
                try:
                    line = {"words": job.words, "log": str(job.log)}
                    process.stdin.write(json.dumps(line) + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                except OSError:
                    answer = ""
                if not answer:
                    results[job] = {"code": f"the process died ({process.poll()})", "seconds": 0.0}
                    return
                results[job] = json.loads(answer)

        threads = [
            threading.Thread(target=serve, args=pair, daemon=True) for pair in self._processes
        ]
        for thread in threads:
            thread.start()
        ends = time.monotonic() + seconds() - 4
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return dict(results)

    def end(self) -> None:
        for process, _ in self._processes:
            process.kill()


def _started(*, on_cpu: bool) -> subprocess.Popen[str]:
    environment = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
