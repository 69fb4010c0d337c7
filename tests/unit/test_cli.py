"""The light commands: no torch, exit codes, JSON, and the shipped recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefcli import __version__, cli
from prefcli.errors import ExitCode
from prefcli.methods import METHODS
from prefcli.recipe import load

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["dpo", "--help"],
        ["validate", *(str(p) for p in sorted((ROOT / "recipes").glob("*.yaml")))],
        ["validate", "no-such-file.yaml"],
        ["dpo", "no-such-file.yaml"],
        ["schema"],
        ["recipes", "list"],
        ["recipes", "show", "zephyr"],
        ["migrate", "no-such-file.yaml"],
        ["slurm", "recipes/zephyr.yaml", "--time", "90"],
    ],
    ids=" ".join,
)
def test_light_commands_import_no_torch(argv):
    code = (
        "import sys, prefcli.cli as cli\n"
        f"sys.argv = {['prefcli', *argv]!r}\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "HEAVY []", result.stderr


def test_help_lists_every_exit_code_and_method(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for code in ExitCode:
        assert f"{code.value:>2}  {code.meaning}" in text
    for name in METHODS:
        assert f"\n  {name} " in text


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == f"prefcli {__version__}"


def test_validate_reports_all_files(monkeypatch, capsys, tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(
        "output_dir: r\nmodel: {name_or_path: m}\ndpo: {}\ndata: {train: {path: d.jsonl}}\n"
    )
    bad.write_text("output_dir: r\nmodel: {name_or_path: m}\ndpo: {bta: 1}\ndata: {}\n")
    assert run(monkeypatch, "validate", str(good), str(bad)) == 2
    out, err = capsys.readouterr()
    assert out.strip() == f"{good}: valid (dpo)"
    assert f"error: {bad}:3:7: dpo.bta: no such key" in err
    assert "did you mean" in err

    assert run(monkeypatch, "validate", str(good), str(bad), "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert [entry["valid"] for entry in document] == [True, False]
    assert len(document[1]["problems"]) == 2


def test_a_missing_section_names_those_there_are(monkeypatch, capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "output_dir: r\nmodel: {name_or_path: m}\ndpo: {}\ndata: {train: {path: d.jsonl}}\n"
    )
    assert run(monkeypatch, "kto", str(path)) == 2
    err = capsys.readouterr().err
    assert "no 'kto' section; it has dpo" in err
    assert "kto: {}" in err


def test_an_error_is_json_too(monkeypatch, capsys):
    assert run(monkeypatch, "dpo", "nowhere.yaml", "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert document["problems"][0]["place"] == "nowhere.yaml"


@pytest.mark.parametrize("argv", [["dpo"], ["dppo", "r.yaml"], ["dpo", "r.yaml", "--dryrun"]])
def test_a_wrong_command_line_is_exit_2(monkeypatch, argv):
    assert run(monkeypatch, *argv) == 2


def test_recipes_are_copied_with_their_data(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "recipes", "copy", "quickstart", str(tmp_path)) == 0
    assert {p.stem for p in (tmp_path / "quickstart").glob("*.yaml")} == {*METHODS}
    assert (tmp_path / "quickstart" / "data" / "prompts.jsonl").is_file()
    recipe = load(str(tmp_path / "quickstart" / "sft.yaml")).recipe
    assert Path(recipe.data.train[0].path).is_relative_to(tmp_path)
    assert Path(recipe.data.train[0].path).is_file()
    capsys.readouterr()
    assert run(monkeypatch, "recipes", "copy", "quickstart", str(tmp_path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(monkeypatch, "recipes", "copy", "zephir", str(tmp_path)) == 2
    assert "zephyr" in capsys.readouterr().err


def test_the_schema_is_json_schema(monkeypatch, capsys):
    assert run(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() >= {"model", "data", "dpo", "training"}
    assert "lambda" in schema["$defs"]["Orpo"]["properties"]
