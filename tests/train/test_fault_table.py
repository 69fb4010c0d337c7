"""A small part of scripts/fault_table.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fault_table.py"


@pytest.mark.slow
def test_fault_table_of_a_few_faults_finds_nothing_wrong():
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *("--model", "1", "--run", "1", "--seed", "1")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    assert "| tracebacks | 0 | 0 |" in ended.stdout
