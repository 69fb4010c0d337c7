"""`prefcli runs` lists the runs in a folder, and `prefcli env` the facts of the machine."""

from __future__ import annotations

import json
import sys

import pytest

from prefcli import cli
from tests.support.run_dirs import RUN, dpo_run, write_run


@pytest.fixture
def printed(monkeypatch, capsys):
    """Run a command line and return its standard output."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prefcli", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    return run


def test_runs_lists_every_run_with_its_last_evaluation(printed, tmp_path):
    dpo_run(tmp_path / "good")
    write_run(tmp_path / "more" / "failed", run={**RUN, "status": "failed", "started": "2001"})
    head, first, second = printed("runs", str(tmp_path)).splitlines()
    assert head.split()[:4] == ["run", "method", "state", "step"]
    assert first.split()[:4] == ["good", "dpo", "finished", "200"]
    assert "%" in first
    assert second.split()[:4] == ["more/failed", "dpo", "failed", "0"]
    rows = json.loads(printed("runs", str(tmp_path), "--json"))
    assert [row["run"] for row in rows] == ["good", "more/failed"]


def test_runs_in_an_empty_folder_says_so(printed, tmp_path):
    assert printed("runs", str(tmp_path)) == f"no runs in {tmp_path}\n"


def test_env_prints_versions(printed, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    facts = json.loads(printed("env", "--no-device", "--json"))
    assert {"prefcli", "python", "torch", "trl"} <= facts.keys()
    assert facts["SLURM_JOB_ID"] == "17"
