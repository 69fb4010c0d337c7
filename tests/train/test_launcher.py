"""`prefcli METHOD RECIPE` with a launch section: two real processes (gloo, on the CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from tests.support.processes import free_port
from tests.support.tiny_runs import metric_rows, small_recipe

RANK = "${oc.env:RANK,0}"


def command(folder: Path, data: dict, *more: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return [sys.executable, "-m", "prefcli", "dpo", str(path), *more]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def left_behind(before: set[Path]) -> set[Path]:
    return {*Path(tempfile.gettempdir()).glob("prefcli-*.failed")} - before


def test_a_rank_that_dies(tiny_model, tmp_path):
    """In the middle of a run that would take hours."""
    before = left_behind(set())
    data = small_recipe(tiny_model, tmp_path)
    del data["data"]["eval"]
    data["launch"] = {"processes": 2}
    data["training"] |= {"max_steps": 10**6, "logging_steps": 5, "warmup_steps": 0}
    started = subprocess.Popen(
        command(tmp_path, data),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in started.stdout:
            if line.startswith("step=10/"):
                break
        workers = {p.environ()["RANK"]: p for p in psutil.Process(started.pid).children()}
        assert sorted(workers) == ["0", "1"]
        begun = time.monotonic()
        workers["1"].kill()
        _, err = started.communicate(timeout=60)
        assert time.monotonic() - begun < 10
    finally:
        started.kill()  # the workers go with it
    assert started.returncode == 1
    said = [line for line in err.splitlines() if "reducer.cpp" not in line]
    assert said[0] == "error: rank 1 was killed by signal 9 (Killed) [ENV001]"
    assert said[1].startswith("    -> out of memory?")
    assert len(said) == 2
    assert not workers["0"].is_running()
    assert not left_behind(before)


def test_a_rank_that_raises(tiny_model, tmp_path):
    """Its code and its words come through, also for a script."""
    data = small_recipe(tiny_model, tmp_path)
    data["data"]["train"] = {"path": f"{tmp_path}/train-{RANK}.jsonl"}
    data["launch"] = {"processes": 2}
    rows = (tmp_path / "train.jsonl").read_text("utf-8")
    (tmp_path / "train-0.jsonl").write_text(rows, "utf-8")
    (tmp_path / "train-1.jsonl").write_text(rows + '{"prompt": "a", "chosen": 7}\n', "utf-8")
    done = subprocess.run(
        command(tmp_path, data, "--json"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 4
    assert f"rank 1: error: {tmp_path}/train-1.jsonl: row 25: " in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 4


def test_two_machines(tiny_model, tmp_path):
    """Here one, twice: each starts a process, and they meet."""
    data = small_recipe(tiny_model, tmp_path)
    del data["data"]["eval"]
    data["launch"] = {"processes": 1, "nodes": 2}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    machines = [
        subprocess.Popen(
            command(tmp_path, data),
            env=environment(NODE_RANK=str(rank), **where),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (1, 0)
    ]
    second, first = (machine.communicate(timeout=120)[0] for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert "plan: 2 steps of 8 rows (4 per device x 2 devices x 1 accumulated)" in first
    assert "on machine 1 of 0 to 1" in second
    assert "step=" not in second
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert [row["step"] for row in metric_rows(tmp_path / "run") if "loss" in row] == [1, 2]
