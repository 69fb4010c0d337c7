"""Data that does not fit gets a code, a place and a cure."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from prefcli import cli
from tests.support.mistakes import Mistake, mistakes


@mistakes("data.yaml")
def test_mistake_in_data_is_answered(mistake: Mistake, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mistake.make(Path())
    recipe = Path("ok.yaml").read_text("utf-8").replace("models/tiny", str(tiny_model))
    Path("ok.yaml").write_text(recipe, "utf-8")
    monkeypatch.setattr(sys, "argv", ["prefcli", "data", "ok.yaml"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    mistake.check(int(stop.value.code or 0), capsys.readouterr().err)


@mistakes("after_training.yaml")
def test_mistake_after_training_is_answered(
    mistake: Mistake, tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    mistake.make(Path())
    Path("models", "empty").mkdir(parents=True)
    shutil.copy(tiny_model / "config.json", Path("models", "empty"))
    Path("models", "tiny").symlink_to(tiny_model)
    failing = Path(shutil.copytree(tiny_model, Path("models", "failing")))
    reward = Path(shutil.copytree(tiny_model, Path("models", "reward")))
    config = json.loads((reward / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (reward / "config.json").write_text(json.dumps(config))
    (failing / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    monkeypatch.setattr(sys, "argv", ["prefcli", *shlex.split(mistake.command)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    mistake.check(int(stop.value.code or 0), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("lacks", "message", "cure"),
    [
        (("config.json",), "has no config.json", "complete folder"),
        (("tokenizer.json", "tokenizer_config.json"), "has no tokenizer", "model.tokenizer"),
    ],
    ids=["config", "tokenizer"],
)
def test_incomplete_model_folder_names_what_it_lacks(
    recipe_data, dry_run, tiny_model, tmp_path, lacks, message, cure
):
    folder = shutil.copytree(tiny_model, tmp_path / "copied")
    for name in lacks:
        (folder / name).unlink()
    recipe_data["model"]["name_or_path"] = str(folder)
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    problems = [entry for entry in document["problems"] if entry["code"] == "MDL034"]
    assert problems
    assert message in problems[0]["message"]
    assert cure in problems[0]["hint"]


def test_misspelt_model_folder_names_its_neighbour(recipe_data, dry_run, tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent.parent)
    recipe_data["model"]["name_or_path"] = f"{tiny_model.parent.name}/{tiny_model.name[:-1]}"
    _, document, _ = dry_run(recipe_data)
    assert any("did you mean" in str(entry) for entry in document["unchecked"]), document
