"""`prefcli METHOD RECIPE` with a launch section: two real processes (gloo, on the CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.processes import free_port
from tests.support.tiny_runs import metric_rows, small_recipe

RANK = "${oc.env:RANK,0}"


def command(folder: Path, data: dict, *options: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return [sys.executable, "-m", "prefcli", "dpo", str(path), *options]


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


@pytest.mark.slow
def test_launch_failed_rank_sets_exit_code_and_error(tiny_model, tmp_path):
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


@pytest.mark.slow
def test_launch_two_nodes_train_together(tiny_model, tmp_path):
    """Both nodes are this machine, with one process each."""
    data = small_recipe(tiny_model, tmp_path)
    del data["data"]["eval"]
    data["launch"] = {"processes": 1, "nodes": 2}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [
        subprocess.Popen(
            command(tmp_path, data),
            env=environment(NODE_RANK=str(node), **rendezvous),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (1, 0)
    ]
    second, first = (node.communicate(timeout=120)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], first + second
    assert "plan: 2 steps of 8 rows (4 per device x 2 devices x 1 accumulated)" in first
    assert "node 1 of 0 to 1" in second
    assert "step=" not in second
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert [row["step"] for row in metric_rows(tmp_path / "run") if "loss" in row] == [1, 2]
