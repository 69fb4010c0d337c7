"""A sweep of real runs."""

from __future__ import annotations

import json

import pytest
import yaml

from prefcli import cli
from prefcli.evaluation.evaluate import evaluate
from prefcli.recipe import load


@pytest.mark.slow
def test_sweep_runs_once_skips_what_has_finished_and_compares(
    recipe_data, tmp_path, monkeypatch, capsys
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_data))
    folder = tmp_path / "sweep"
    words = ["sweep", str(recipe), "beta=0.1,0.5", f"--output-dir={folder}", "--best=accuracy"]
    words += ["--jobs=2"]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["prefcli", *words, *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        return capsys.readouterr().out

    first = run("--method=dpo")
    assert "dpo-beta=0.5: finished" in first
    assert "best accuracy on held-out rows: dpo-beta=" in first
    logs = "".join(log.read_text() for log in folder.glob("*.log"))
    # Of the two runs that started together, one scored the rows of each split.
    assert logs.count("computed and cached for later runs") == 2
    assert logs.count("read from an earlier run") == 2
    assert (folder / "sweep.html").is_file()
    report = json.loads(run("--method=dpo", "--json"))
    assert {run["run"] for run in report["runs"]} == {"dpo-beta=0.1", "dpo-beta=0.5"}
    assert set(report["exit_codes"].values()) == {0}
    # The runs had no reference in memory, so that their KL was measured after them.
    assert all(run["KL"] > 0 for run in report["runs"])
    path = folder / "dpo-beta=0.5"
    own = load(str(path / "recipe.yaml")).recipe
    evaluated = evaluate(own, own.dpo, [str(path)])
    kl = {run["run"]: run["KL"] for run in report["runs"]}["dpo-beta=0.5"]
    assert kl == pytest.approx(evaluated.total.models[0]["reference_kl"].value)
