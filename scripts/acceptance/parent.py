"""Start each part in a separate session, end it in time, and write its results.

This module does not import torch: a broken driver or package is then a row of one part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.acceptance.parts import PARTS, TOGETHER
from scripts.acceptance.rows import POISONED
from scripts.acceptance.tables import printed, table

_SCRIPT = Path(__file__).parents[1] / "gpu_acceptance.py"
_LOGGED = 200_000
"""Bytes of a part's output that log.txt keeps."""
_RUN_LOGGED = 4000
"""Bytes of the output of each run of a part that failed."""
_CHILDREN = 6
"""That a part may need, one after another dying."""
_GRACE = 3.0
_CLOSING = 4.0
"""Seconds kept for the last table."""

Row = dict[str, Any]
Start = Callable[[Sequence[str], Path, Mapping[str, str]], "subprocess.Popen[bytes]"]
"""Starts a part's process in a new session, from its arguments, its log and more environment."""


def started(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Any:
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), *words],
        stdin=subprocess.PIPE,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **environment},
    )


class Child:
    """A process that imports everything and then waits for the signal to start."""

    def __init__(
        self,
        names: list[str],
        options: argparse.Namespace,
        work: Path,
        threads: int | None,
        start: Start,
    ) -> None:
        """threads: of each process on the CPU, or they would wait for each other's."""
        self.names = names
        self.log = work / f"{names[0]}.log"
        self._ended = False
        words = ["--part", ",".join(names), "--rows", str(work / "rows.jsonl"), "--work", str(work)]
        words += ["--cpu"] * options.cpu + ["--quick"] * options.quick
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._process = start(words, self.log, environment)

    def go(self, seconds: float, skip: list[str]) -> int | None:
        """Start the cases; return the exit code, or None if the time was over."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds, "skip": skip}).encode())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it died while it imported; its exit code and its log say so
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """End the process with all of its children, once."""
        if self._ended:
            return
        self._ended = True
        for number, wait in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(wait)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


class Acceptance:
    """The parts one after another, until the time is over."""

    def __init__(self, options: argparse.Namespace, work: Path, start: Start) -> None:
        self._options = options
        self._start = start
        self._work = work
        self._out: Path = options.out
        self._rows = work / "rows.jsonl"
        self._ends = time.monotonic() + options.seconds - _CLOSING
        self._started: list[Child] = []
        self._own: list[Row] = []
        """Rows of this process: parts that are skipped, children that died."""

    @property
    def _left(self) -> float:
        return self._ends - time.monotonic()

    def run(self) -> list[Row]:
        groups = self._groups()
        children = self._children(groups[0])
        try:
            for at, names in enumerate(groups):
                # These import while the next ones' predecessors work.
                following = self._children(groups[at + 1]) if at + 1 < len(groups) else []
                mine, children = children, following
                threads = [
                    threading.Thread(target=self._part, args=(c,), daemon=True) for c in mine
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                self._keep(names)
        finally:
            # An interrupt also ends the children that run or wait.
            for child in self._started:
                child.end()
        return self._all()

    def _groups(self) -> list[list[str]]:
        """Return the groups of parts that run at the same time."""
        requested = self._options.parts
        if self._options.one_process:
            # Importing the libraries takes longer than a quick part.
            return [list(requested)]
        together = [name for name in TOGETHER if name in requested]
        groups: list[list[str]] = []
        for name in requested:
            if name not in together:
                groups.append([name])
            elif name == together[0]:
                groups.append(together)
        return groups

    def _children(self, names: list[str]) -> list[Child]:
        groups = [names] if self._options.one_process else [[name] for name in names]
        return [self._child(group) for group in groups]

    def _child(self, names: list[str]) -> Child:
        together = set(names) <= set(TOGETHER) and not self._options.cpu
        threads = max(1, (os.cpu_count() or 1) // 8) if together else None
        child = Child(names, self._options, self._work, threads, self._start)
        self._started.append(child)
        return child

    def _part(self, child: Child) -> None:
        names = child.names
        part = PARTS[names[0]]
        quick = self._options.quick
        if self._left < part.least and not quick:
            child.end()
            self._note(names[0], "", f"{self._left:.0f} s left, {part.least} needed", "skipped")
            return
        ends = time.monotonic() + (self._left if quick else min(part.most, self._left))
        skip: list[str] = []
        for _ in range(_CHILDREN):
            code = child.go(ends - time.monotonic(), skip)
            if code == 0:
                return
            begun = self._begun(names)
            name, case = begun or (names[0], "")
            how = "its time was over" if code is None else f"the process ended with {code}"
            if code != POISONED:  # which has written its row
                self._note(name, case, how, "FAIL")
            if code is None or ends - time.monotonic() < 15:
                return
            skip = self._done(names) + ([case] if begun else [])
            child = self._child(names)

    def _lines(self) -> list[Row]:
        if not self._rows.is_file():
            return []
        lines = []
        for line in self._rows.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # torn by a kill
                continue
        return lines

    def _begun(self, names: list[str]) -> tuple[str, str] | None:
        """The case that has begun and not ended."""
        last = None
        for line in self._lines():
            if line["part"] in names and "begun" in line:
                last = (line["part"], line["case"])
            if line["part"] in names and "ended" in line:
                last = None
        return last

    def _done(self, names: list[str]) -> list[str]:
        return [line["case"] for line in self._lines() if line["part"] in names and "ended" in line]

    def _note(self, part: str, case: str, value: str, verdict: str) -> None:
        figure = "skipped" if verdict == "skipped" else "died"
        row = {"part": part, "case": case, "figure": figure, "value": value, "bound": None}
        self._own.append(row | {"verdict": verdict})

    def _all(self) -> list[Row]:
        rows = [row for row in self._lines() if "verdict" in row] + self._own
        order = list(PARTS)
        return sorted(rows, key=lambda row: order.index(row["part"]))

    def _keep(self, names: list[str]) -> None:
        """Write the results so far, with processes that are still on the GPU."""
        if not self._options.cpu and (others := _on_the_gpu()):
            self._note(names[-1], "after it", f"still on the GPU: {others}", "info")
        rows = self._all()
        seconds = {
            f"{line['part']}: {line['case']}": line["seconds"]
            for line in self._lines()
            if "ended" in line
        }
        partial = self._out / "results.json.new"
        partial.write_text(json.dumps({"rows": rows, "seconds": seconds}, indent=1), "utf-8")
        partial.replace(self._out / "results.json")
        (self._out / "table.md").write_text(table(rows), "utf-8")
        with (self._out / "log.txt").open("a", encoding="utf-8") as log:
            for path in sorted(self._work.glob("*.log")):
                text = path.read_bytes()[-_LOGGED:].decode("utf-8", "replace")
                if path.stem in names or "-" in path.stem:
                    log.write(f"\n===== {path.stem}\n{text}\n")
                    path.unlink()
            for name in {row["part"] for row in rows if row["verdict"] == "FAIL"} & {*names}:
                for path in sorted((self._work / name).rglob("log.txt")):
                    text = path.read_bytes()[-_RUN_LOGGED:].decode("utf-8", "replace")
                    log.write(f"\n===== {path.parent.relative_to(self._work)}\n{text}\n")
        failed = sum(row["verdict"] == "FAIL" for row in rows if row["part"] in names)
        print(f"{', '.join(names)}: {failed} failed; {self._left:.0f} s left", flush=True)


def _on_the_gpu() -> str:
    try:
        words = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(done.stdout.split("\n")).strip(", ") if done.returncode == 0 else ""


def _work_folder() -> Path:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 16 * 2**30
    return Path(tempfile.mkdtemp(prefix="gpu-acceptance-", dir=memory if roomy else None))


def main(arguments: Sequence[str] | None = None, start: Start = started) -> int:
    parser = argparse.ArgumentParser(description="Is prefcli right and fast on this GPU?")
    parser.add_argument("--out", type=Path, default=Path("acceptance"))
    parser.add_argument("--seconds", type=float, default=510.0)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in one process")
    parser.add_argument("--separate", action="store_true", help="with --quick: a process a part")
    options = parser.parse_args(arguments)
    options.one_process = options.quick and not options.separate
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = _work_folder()
    if not options.one_process and os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        # Each part and each run would compile all libraries again, which takes 20 seconds.
        os.environ["PYTHONPYCACHEPREFIX"] = str(work / "pycache")
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hub"),
        "TOKENIZERS_PARALLELISM": "false",
        # As a run of prefcli has it.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    background = None
    if "memory" in options.parts and not options.one_process:
        background = subprocess.Popen(
            [sys.executable, str(_SCRIPT), "--predict", "--work", str(work)]
            + ["--quick"] * options.quick,
            start_new_session=True,
            stdout=(work / "predict-1.log").open("wb"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.nice(10),
        )
    try:
        rows = Acceptance(options, work, start).run()
    finally:
        if background is not None and background.poll() is None:
            os.killpg(background.pid, signal.SIGKILL)
            background.wait()
        shutil.rmtree(work, ignore_errors=True)
    print(printed(rows))
    return int(any(row["verdict"] == "FAIL" for row in rows))
