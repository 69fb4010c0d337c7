"""On-policy rounds: their commands, what ends them, and how they continue."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import yaml

from prefcli.launcher.round_results import Result, read_result
from prefcli.launcher.rounds import Plan, Rounds, run_rounds
from prefcli.recipe.load import load_text
from tests.support.light_half import run
from tests.support.problems import stops_with

RECIPE = """
output_dir: out
model: {name_or_path: base, revision: main}
dpo: {}
lora: {rank: 4}
judge: {executable: {command: [python, judge.py]}}
pairs: {min_margin: 1.0, samples_per_prompt: 2}
data: {train: {path: train.jsonl}, eval: {path: eval.jsonl}}
"""
# A stand-in for prefcli: it writes the files of a command, with scores that a test gives.
PROGRAM = """
import json, pathlib, sys
command, arguments = sys.argv[2], sys.argv[3:]
scores = json.loads(sys.argv[1])
options = dict(zip(arguments, arguments[1:]))
overrides = dict(word.split("=", 1) for word in arguments if "=" in word)
with open("calls.txt", "a") as calls:
    print(command, file=calls)
output = pathlib.Path(options.get("--output", "."))
number = 0 if output.parent.name == "start" else int(output.parent.name.rpartition("-")[2] or 0)
if command == "pairs":
    score = scores[number]
    if score is None:
        print("error: the judge ended [JDG002]")
        sys.exit(2)
    output.write_text("")
    rows = [{"rewards": [score, score + 1, None]}, {"rewards": [score + 1, score]}]
    samples = output.with_suffix(".samples.jsonl")
    samples.write_text("".join(json.dumps(row) + "\\n" for row in rows))
    output.with_suffix(".provenance.yaml").write_text("result: {rows: 7}")
elif command == "eval":
    metrics = {"reference_kl": {"value": number / 10}, "rewards/accuracies": {"value": 0.8}}
    output.write_text(json.dumps({"total": {"models": {"m": metrics}}}))
else:
    folder = pathlib.Path(json.loads(overrides["output_dir"]) if '"' in overrides["output_dir"]
                          else overrides["output_dir"])
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": "dpo", "status": "finished"}))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_text(RECIPE, "r.yaml").recipe
    return Plan(recipe, "r.yaml", ["dpo.beta=0.2"], recipe.methods["dpo"], tmp_path / "rounds")


def rounds_of(plan, *scores, count=None, **options) -> Rounds:
    """Run rounds whose held-out scores are those given, for the start first."""
    program = [sys.executable, "-c", PROGRAM, json.dumps(scores)]
    lines: list[str] = []
    return run_rounds(plan, count or len(scores) - 1, lines.append, program=program, **options)


def settings(words) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_commands_of_a_round_start_from_the_last_model(plan):
    (_, sampled), (_, trained), (_, evaluated), (_, measured) = plan.steps(2)
    before = str(plan.folder / "round-1" / "run" / "model")
    assert sampled[:2] == ["pairs", "r.yaml"]
    assert settings(sampled)["model.name_or_path"] == before
    assert settings(sampled)["model.revision"] == "null"
    assert settings(sampled)["pairs.seed"] == "44"
    assert trained[0] == "dpo"
    assert (
        settings(trained).items()
        >= {
            "dpo.beta": "0.2",
            "model.name_or_path": before,
            "model.adapter": "continue",
            "lora": "null",
        }.items()
    )
    assert evaluated[2:] == [
        "dpo.beta=0.2",
        str(plan.folder / "round-2" / "run" / "model"),
        *("--method", "dpo", "--output", str(plan.folder / "round-2" / "eval.json")),
    ]
    assert (
        settings(measured).items()
        >= {
            "pairs.kind": "best",
            "pairs.min_margin": "0.0",
            "pairs.unfinished": "keep",
            "pairs.prompts": '[{"path": "eval.jsonl"}]',
        }.items()
    )
    assert "reference.name_or_path" not in settings(trained)
    (_, _), (_, trained), *_ = replace(plan, reference="start").steps(2)
    assert settings(trained)["reference.name_or_path"] == "base"
    assert settings(trained)["reference.revision"] == "main"


def test_rounds_end_when_the_score_does_not_rise(plan):
    outcome = rounds_of(plan, 0.0, 1.0, 0.5, 9.0)
    assert [result.score for result in outcome.results] == [0.5, 1.5, 1.0]
    assert outcome.best.number == 1
    assert "did not rise: +1.500, then +1.000" in outcome.end
    assert outcome.results[1] == Result(1, 1.5, 0.0, 7, 0.1, 0.8)
    assert "round 1     7  +1.500 [+1.500, +1.500]" in "\n".join(outcome.lines())
    table = outcome.summary().table
    assert [head.text for head in table.heads] == ["start", "round 1", "round 2"]
    assert [cell.text for cell in table.rows[0][1]] == ["", "7", "7"]


def test_rounds_end_when_the_kl_is_above_its_limit(plan):
    outcome = rounds_of(plan, 0.0, 1.0, 2.0, 3.0, max_kl=0.15)
    assert [result.number for result in outcome.results] == [0, 1, 2]
    assert "0.2, is above 0.15" in outcome.end


def test_rounds_continue_after_a_failed_command(plan, tmp_path):
    failed = rounds_of(plan, 0.0, None, count=2)
    assert (failed.code, len(failed.results)) == (2, 1)
    calls = tmp_path / "calls.txt"
    calls.unlink()
    outcome = rounds_of(plan, 0.0, 1.0, 2.0)
    assert outcome.code == 0
    assert calls.read_text().split() == ["pairs", "dpo", "eval", "pairs"] * 2
    calls.unlink()
    assert rounds_of(plan, 0.0, 1.0, 2.0, 3.0).best.number == 3
    assert calls.read_text().split() == ["pairs", "dpo", "eval", "pairs"]
    other = replace(plan, reference="start")
    with stops_with("RUN104") as caught:
        rounds_of(other, 0.0, 1.0)
    assert "reference" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"state",
        b'{"method": "dpo", "refer',
        b"null",
        b"[]",
        b'{"seed": 1}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_rounds_with_a_damaged_state_name_the_file_and_start_nothing(plan, tmp_path, content):
    plan.folder.mkdir()
    (plan.folder / "iterate.json").write_bytes(content)
    with stops_with("RUN016") as caught:
        rounds_of(plan, 0.0, 1.0)
    assert str(caught.value).startswith(f"{plan.folder / 'iterate.json'} is not what prefcli")
    assert not (tmp_path / "calls.txt").exists()


@pytest.mark.parametrize(
    ("file", "step", "content"),
    [
        ("held-out.samples.jsonl", "held-out.jsonl", '{"rewards": [1, 2]}\n{"rewa'),
        ("held-out.samples.jsonl", "held-out.jsonl", '{"rewards": [null]}'),
        ("held-out.samples.jsonl", "held-out.jsonl", None),
        ("pairs.provenance.yaml", "pairs.jsonl", "result: ["),
        ("pairs.provenance.yaml", "pairs.jsonl", "rows: 3"),
        ("eval.json", "eval.json", '{"total": {"models": {}}}'),
        ("eval.json", "eval.json", '{"total": {"models": {"m": {"reference_kl": 3}}}}'),
    ],
)
def test_read_result_damaged_file_names_the_step_to_repeat(tmp_path, file, step, content):
    files = {
        "held-out.samples.jsonl": '{"rewards": [1, 2]}',
        "pairs.provenance.yaml": "result: {rows: 3}",
        "eval.json": '{"total": {"models": {"m": {}}}}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_result(tmp_path, 1) == Result(1, 1.5, 0.0, 3)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with stops_with("RUN105") as caught:
        read_result(tmp_path, 1)
    assert str(caught.value).startswith(f"{tmp_path / file} ")
    assert f"-> remove {tmp_path / step}, and run" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge": None}, "rounds need a judge"),
        ({"data": {"train": {"path": "train.jsonl"}}}, "a data file with held-out prompts"),
        ({"pairs": {"kind": "best"}}, "pairs.kind best makes no rows for dpo"),
        ({"dpo": None, "reward": {}}, "reward trains no model that answers"),
    ],
)
def test_recipe_without_what_rounds_need_is_refused(tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    recipe = {k: v for k, v in (yaml.safe_load(RECIPE) | change).items() if v is not None}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert run(monkeypatch, "iterate", "r.yaml", "--rounds", "2") == 2
    assert words in capsys.readouterr().err


def test_print_shows_the_commands_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert run(monkeypatch, "iterate", "r.yaml", "--rounds", "2", "--print") == 0
    commands = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert commands == ["pairs", *["pairs", "dpo", "eval", "pairs"] * 2]
    assert not (tmp_path / "out-rounds").exists()
