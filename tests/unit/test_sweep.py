"""The runs of a sweep: which there are, how they are run, and the best of them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from prefcli.errors import RecipeError
from prefcli.launcher.sweep import Sweep, run_trials
from prefcli.launcher.sweep_kl import with_kl
from prefcli.launcher.trials import Trial, draws, grid
from prefcli.report.best_run import rank_runs
from prefcli.report.run_data import read_run
from tests.support.run_dirs import RECIPE, RUN, eval_row, train_row, write_run


def test_grid_has_every_combination_per_method():
    settings = ["beta=0.1,0.2", "training.learning_rate=1e-6,5e-7", "seed=1"]
    trials = grid(settings, ["dpo", "ipo"])
    assert len(trials) == 8
    assert trials[0].name == "dpo-beta=0.1-learning_rate=1e-6"
    assert trials[0].overrides == ("dpo.beta=0.1", "training.learning_rate=1e-6", "seed=1")
    assert trials[-1].overrides == ("ipo.beta=0.2", "training.learning_rate=5e-7", "seed=1")


def test_grid_of_a_list_is_one_value():
    (trial,) = grid(["dpo.loss_type=[sigmoid, sft]"], ["dpo"])
    assert trial.overrides == ("dpo.loss_type=[sigmoid, sft]",)
    two = grid(["dpo.loss_type=[sigmoid, sft],hinge"], ["dpo"])
    names = [trial.name for trial in two]
    assert names == ["dpo-loss_type=_sigmoid_sft_-595898", "dpo-loss_type=hinge"]


def test_grid_of_values_that_differ_in_punctuation_or_at_their_end_has_distinct_names():
    half = "{path: org/pairs, split: 'train[%s]'}"
    long = "x" * 200
    for values in ([half % ":50%", half % "50%:"], [f"{long}1", f"{long}2"]):
        trials = grid([f"data.train={','.join(values)}"], ["dpo"])
        assert len({trial.name for trial in trials}) == 2
        assert all(re.fullmatch(r"[\w.=-]{,120}", trial.name) for trial in trials)
        # They do not depend on the other runs, so that a sweep can be extended.
        assert grid([f"data.train={values[1]},y"], ["dpo"])[0].name == trials[1].name


def test_trial_adds_the_section_and_precomputed_references():
    simpo, dpo = (grid(["seed=1"], [name])[0] for name in ("simpo", "dpo"))
    assert simpo.with_sections(["dpo"], precomputes=True).overrides == ("simpo={}", "seed=1")
    assert dpo.with_sections(["dpo"], precomputes=True).overrides[0] == "reference.precompute=true"
    assert dpo.with_sections(["dpo"], precomputes=False).overrides == ("seed=1",)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (["beta"], "RCP013"),
        (["beta=0.1,"], "RCP013"),
        (["beta=0.1,0.1"], "RCP036"),
        (["beta=0.01..1"], "RCP037"),
        (["beta=1..0.01"], "RCP013"),
    ],
)
def test_grid_of_a_mistake_raises(settings, code):
    with pytest.raises(RecipeError) as caught:
        grid(settings, ["dpo"])
    assert caught.value.problems[0].code == code


def test_draws_are_different_within_their_ranges_and_the_same_for_a_seed():
    settings = ["beta=0.001..1", "lora.rank=4..64", "model.dtype=float32,bfloat16"]
    trials = draws(settings, ["dpo", "ipo"], 40, seed=3)
    assert trials == draws(settings, ["dpo", "ipo"], 40, seed=3)
    assert trials != draws(settings, ["dpo", "ipo"], 40, seed=4)
    assert [trial.method for trial in trials[:3]] == ["dpo", "ipo", "dpo"]
    values = [[word.partition("=")[2] for word in trial.overrides] for trial in trials]
    betas = [float(beta) for beta, _, _ in values]
    assert all(0.001 <= beta <= 1 for beta in betas)
    assert 8 < sum(beta < 0.0316 for beta in betas) < 32  # half of a log scale
    assert all(4 <= int(rank) <= 64 for _, rank, _ in values)
    assert len({trial.name for trial in trials}) == 40


def test_draws_beyond_the_number_of_runs_raises():
    assert len(draws(["beta=0.1,0.2"], ["dpo", "ipo"], 4, seed=0)) == 4
    with pytest.raises(RecipeError, match="have 4 different runs"):
        draws(["beta=0.1,0.2"], ["dpo", "ipo"], 5, seed=0)


_PROGRAM = """\
import pathlib, sys, time
*_, output = sys.argv
name = pathlib.Path(output.removeprefix("output_dir=").strip('"')).name
folder = pathlib.Path(__file__).parent
(folder / f"{name}.started").touch()
deadline = time.monotonic() + 5
while len([*folder.glob("*.started")]) < 2 and name in "ab" and time.monotonic() < deadline:
    time.sleep(0.02)
print("error: no luck")
sys.exit(int(time.monotonic() > deadline) or {"c": 130}.get(name, 2))
"""


def test_run_trials_at_once_and_not_after_one_was_interrupted(tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    write_run(tmp_path / "done")
    write_run(tmp_path / "broken", run={**RUN, "status": "diverged", "why": "nan"})
    trials = [Trial(name, "dpo", ()) for name in ("a", "done", "b", "broken", "c", "d", "e")]
    program = (sys.executable, str(tmp_path / "program.py"))
    sweep = Sweep(trials, "r.yaml", tmp_path, jobs=2, program=program)
    lines: list[str] = []
    codes = {t.name: code for t, code in run_trials(sweep, lines.append, lambda: None)}
    # a and b wait for each other; c is interrupted while d may be running.
    assert codes.pop("d", 2) == 2
    assert codes == {"a": 2, "done": 0, "b": 2, "broken": 5, "c": 130}
    assert not (tmp_path / "e.started").exists()
    assert any("done: finished before" in line for line in lines)
    assert any("broken: diverged" in line and "remove" in line for line in lines)
    assert any(line.endswith(": no luck") for line in lines)


def test_environment_of_runs_at_once_shares_gpus_and_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def gpus(jobs: int, slot: int) -> str | None:
        sweep = Sweep([], "r.yaml", Path(), jobs=jobs, gpus=["0", "2", "5"])
        environment = sweep.environment(slot)
        return environment and environment["CUDA_VISIBLE_DEVICES"]

    assert gpus(1, 0) is None
    assert [gpus(2, slot) for slot in range(2)] == ["0,5", "2"]
    assert [gpus(4, slot) for slot in range(4)] == ["0", "2", "5", "0"]
    (environment,) = [Sweep([], "r.yaml", Path(), jobs=64).environment(0)]
    assert environment is not None
    assert environment["OMP_NUM_THREADS"] == "1"


def runs(tmp_path, **accuracies):
    """Write runs with these accuracies; `broken` has a loss that exploded, `stopped` no end."""
    for name, accuracy in accuracies.items():
        last = {"rewards/accuracies": accuracy}
        last |= {"loss": 40.0} if name == "broken" else {}
        record = {**RUN, "status": "diverged"} if name == "stopped" else RUN
        rows = [eval_row(0), train_row(1), eval_row(200, **last)]
        write_run(tmp_path / name, run=record, recipe=RECIPE, rows=rows)
    return [read_run(tmp_path / name) for name in accuracies]


def test_rank_runs_takes_the_best_usable_run_and_names_those_within_noise(tmp_path):
    ended = runs(tmp_path, low=0.6, high=0.9, near=0.89, broken=0.99, stopped=0.95)
    ranking = rank_runs(ended, "accuracy")
    assert ranking.order == [1, 2, 0, 3, 4]
    lines = list(ranking.lines([run.name for run in ended]))
    assert lines[0] == "best accuracy on held-out rows: high, 0.900"
    assert lines[1] == "within noise of it: near"
    assert lines[2].startswith("not chosen in spite of its accuracy: broken (Finished, but")
    assert "stopped" in lines[3]
    assert rank_runs(ended, "perplexity").best is not None
    assert rank_runs(ended[3:], "accuracy").best is None


@pytest.mark.parametrize("content", ["{", "[]", '{"a 2026": "low"}', "[" * 9999])
def test_with_kl_damaged_file_measures_again(tmp_path, content):
    rows = [{k: v for k, v in eval_row(200).items() if k != "eval_reference_kl"}]
    run = read_run(write_run(tmp_path / "run", recipe=RECIPE.split("expected")[0], rows=rows))
    (tmp_path / "kl.json").write_text(content)
    (measured,) = with_kl([run], tmp_path, lambda *_: [0.25])
    (known,) = with_kl([run], tmp_path, None)
    assert measured.model_eval["reference_kl"] == known.model_eval["reference_kl"] == 0.25


def test_sweep_command_writes_its_page_without_running(tmp_path, monkeypatch, capsys):
    from prefcli import cli

    (tmp_path / "r.yaml").write_text(
        "output_dir: runs/x\nmodel: {name_or_path: m}\ndpo: {}\ndata: {train: {path: d.jsonl}}\n"
    )
    monkeypatch.chdir(tmp_path)
    for beta, accuracy in (("0.1", 0.8), ("0.2", 0.9), ("0.3", 0.7), ("0.4", 0.6)):
        rows = [eval_row(0), train_row(1), eval_row(200, **{"rewards/accuracies": accuracy})]
        recipe = RECIPE.replace("beta: 0.1", f"beta: {beta}")
        write_run(tmp_path / "runs" / "x-sweep" / f"dpo-beta={beta}", recipe=recipe, rows=rows)

    def run(*options: str) -> tuple[int, str]:
        words = ["prefcli", "sweep", "r.yaml", "beta=0.1,0.2,0.3,0.4", "--compare", *options]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr().out

    code, out = run("--best=accuracy", "--json")
    document = json.loads(out)
    assert (code, document["best"]) == (0, "dpo-beta=0.2")
    assert [row["accuracy"] for row in document["runs"]] == [0.9, 0.8, 0.7, 0.6]
    page = (tmp_path / "runs" / "x-sweep" / "sweep.html").read_text()
    assert "Reward accuracy against KL to the reference" in page
    assert "Best accuracy on held-out rows: dpo-beta=0.2" in page
    assert run("--best=margin")[0] == 2
