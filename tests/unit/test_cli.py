"""The light commands: no torch, exit codes, JSON, and the shipped recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefcli import __version__
from prefcli.cli.main import COMMANDS, command_tree
from prefcli.errors import ExitCode
from prefcli.methods import METHODS
from prefcli.recipe import load
from tests.support.light_half import HEAVY, run

ROOT = Path(__file__).parents[2]
RECIPE = "output_dir: r\nmodel: {name_or_path: m}\ndpo: {}\ndata: {train: {path: d.jsonl}}\n"


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


def test_ctrl_c_during_the_imports_is_130_without_a_traceback():
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import prefcli.cli\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (130, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["", "--prompts", "p.jsonl"],
        ["m", "--prompts", ""],
        ["m", "--prompts", "p.jsonl", "--temperature", "1e-300"],
    ],
    ids=["model", "prompts", "temperature"],
)
def test_sample_with_a_value_that_no_model_can_use_is_refused(monkeypatch, capsys, argv):
    assert run(monkeypatch, "sample", *argv) == 2
    assert "RCP033" in capsys.readouterr().err


def test_help_lists_every_exit_code_and_method(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for code in ExitCode:
        assert f"{code.value:>2}  {code.meaning}" in text
    for name in METHODS:
        assert f"\n  {name} " in text


def test_version_is_printed(monkeypatch, capsys):
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


def test_method_without_section_names_the_sections_of_the_recipe(monkeypatch, capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "output_dir: r\nmodel: {name_or_path: m}\ndpo: {}\ndata: {train: {path: d.jsonl}}\n"
    )
    assert run(monkeypatch, "kto", str(path)) == 2
    err = capsys.readouterr().err
    assert "no 'kto' section; it has dpo" in err
    assert "kto: {}" in err


def test_error_with_json_is_a_document(monkeypatch, capsys):
    assert run(monkeypatch, "dpo", "nowhere.yaml", "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert document["problems"][0]["place"] == "nowhere.yaml"


@pytest.mark.parametrize("argv", [["dpo"], ["dppo", "r.yaml"], ["dpo", "r.yaml", "--dryrun"]])
def test_invalid_command_line_exits_with_2(monkeypatch, argv):
    assert run(monkeypatch, *argv) == 2


def test_recipes_copy_includes_data(monkeypatch, capsys, tmp_path):
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


def test_schema_prints_json_schema(monkeypatch, capsys):
    assert run(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() >= {"model", "data", "dpo", "training"}
    assert "lambda" in schema["$defs"]["Orpo"]["properties"]


def test_command_summaries_are_the_first_lines_of_their_help():
    tree = command_tree()
    for name, (_, summary) in COMMANDS.items():
        first = (tree.commands[name].help or "").splitlines()[0]
        assert first == (
            (METHODS[name].__doc__ or "").splitlines()[0] if name in METHODS else summary
        )


@pytest.mark.parametrize("command", ["data", "prepare", "launch"])
def test_command_without_method_on_a_recipe_of_several_is_an_error(
    command, monkeypatch, capsys, tmp_path
):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE + "kto: {}\n")
    assert run(monkeypatch, command, str(path), "--json") == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["code"], problem["hint"]) == ("RCP019", "add --method dpo|kto")


@pytest.mark.parametrize("command", ["data", "prepare", "launch", "slurm"])
def test_method_before_the_recipe_is_an_error_that_shows_the_order(command, monkeypatch, capsys):
    options = ["--time", "90"] if command == "slurm" else []
    assert run(monkeypatch, command, "dpo", "r.yaml", *options) == 2
    assert "RECIPE --method dpo" in capsys.readouterr().err


def test_validate_applies_overrides_to_every_recipe(monkeypatch, capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    assert run(monkeypatch, "validate", str(path), str(path), "seed=-1", "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert [entry["problems"][0]["code"] for entry in document] == ["RCP005", "RCP005"]


def test_validate_method_without_section_is_an_error(monkeypatch, capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    assert run(monkeypatch, "validate", str(path), "--method", "dpo") == 0
    assert run(monkeypatch, "validate", str(path), "--method", "kto") == 2
    assert "RCP018" in capsys.readouterr().err


def test_sample_output_that_cannot_be_written_is_refused_first(monkeypatch, tmp_path, capsys):
    command = ("sample", "m", "--prompts", "p.jsonl", "--output", str(tmp_path))
    assert run(monkeypatch, *command) == ExitCode.RECIPE
    assert "Is a directory [RCP027]" in capsys.readouterr().err
