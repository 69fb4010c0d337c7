"""The wheel in an empty folder: it lists, copies, checks and runs its recipes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prefcli.methods import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prefcli(tmp_path_factory):
    """Build the wheel, unpack it into an empty folder, and run commands there."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    site, empty = folder / "site", folder / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()

    def run(*argv: str) -> str:
        result = subprocess.run(
            [sys.executable, "-P", "-m", "prefcli", *argv],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run, site, empty


@pytest.mark.slow
def test_wheel_without_sources_runs_the_quickstart_recipes(prefcli):
    run, site, empty = prefcli
    assert (site / "prefcli" / "py.typed").is_file()
    assert "quickstart/dpo" in run("recipes", "list")
    copied = run("recipes", "copy", "quickstart", ".").split()
    assert len(copied) == len(METHODS)
    assert "#SBATCH" in run("slurm", "quickstart/sft.yaml", "--time", "90")
    output = run("sft", "quickstart/sft.yaml", "training.max_steps=2", "data.train.fraction=0.02")
    assert "done: 2 steps of sft in" in output
    assert (empty / "runs" / "quickstart-sft" / "model" / "model.safetensors").is_file()
    # A dry-run does not run check-sft, which would refuse a model after two batches.
    assert "will run" in run("dpo", "quickstart/dpo.yaml", "--dry-run")
