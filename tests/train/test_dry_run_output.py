"""The rows and the disk space that a dry-run prints; it writes no files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from prefcli.methods import METHODS
from tests.support.tiny_runs import pairs, write_jsonl
from tests.support.tiny_tokenizers import WITH_BOS, letters, no_end


@pytest.fixture
def with_tokenizer(recipe_data, tiny_model, tmp_path):
    """Change the recipe to a copy of the model with another tokenizer."""

    def use(tokenizer, chat: bool) -> dict:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
        tokenizer.save_pretrained(folder)
        rows = write_jsonl(tmp_path / "rows.jsonl", pairs(24, chat=chat))
        recipe_data["model"]["name_or_path"] = str(folder)
        recipe_data["data"] = {"train": {"path": str(rows)}, "max_length": 120}
        # The default limits, except for duplicates, which are common with so few words.
        off = {"error": None}
        checks = {"duplicates": off, "no_end": {"error": 0.05}, "two_bos": {"error": 0.0}}
        recipe_data["data"]["checks"] = checks
        return recipe_data

    return use


def faults(document: dict) -> dict[str, str]:
    return {p["path"].split(".")[2]: p["message"] for p in document["problems"]}


def test_dry_run_with_a_template_without_end_fails(with_tokenizer, dry_run):
    code, document, _ = dry_run(with_tokenizer(no_end(), chat=True))
    assert (code, document["will_run"]) == (4, False)
    assert "24 of 24 rows" in faults(document)["no_end"]


def test_dry_run_with_two_bos_fails(with_tokenizer, dry_run):
    """Check rows with a BOS in the text and a tokenizer that adds another."""
    tokenizer = letters("<s>", "</s>", prepends=True, bos_token="<s>", eos_token="</s>")
    data = with_tokenizer(tokenizer, chat=False)
    rows = [{**row, "prompt": "<s>" + row["prompt"]} for row in pairs(24)]
    write_jsonl(Path(data["data"]["train"]["path"]), rows)
    code, document, _ = dry_run(data)
    assert (code, document["will_run"]) == (4, False)
    assert "24 of 24 rows" in faults(document)["two_bos"]


def test_dry_run_without_bos_warns(with_tokenizer, dry_run):
    template = WITH_BOS.replace("{{ bos_token }}", "")
    tokenizer = letters(
        "<s>", "</s>", prepends=True, template=template, bos_token="<s>", eos_token="</s>"
    )
    code, document, _ = dry_run(with_tokenizer(tokenizer, chat=True))
    assert (code, document["will_run"]) == (0, True)
    assert any("no_bos: 100 % of the rows" in warning for warning in document["warnings"])


def test_dry_run_prints_the_tokens_of_the_first_row(with_tokenizer, dry_run):
    tokenizer = letters("<s>", "</s>", prepends=True, bos_token="<s>", eos_token="</s>")
    data = with_tokenizer(tokenizer, chat=False)
    rows = [{"prompt": f"{i}a", "chosen": "bc", "rejected": "d"} for i in range(24)]
    write_jsonl(Path(data["data"]["train"]["path"]), rows)
    code, document, printed = dry_run(data)
    assert code == 0
    row = document["row"]
    assert row["place"].endswith("rows.jsonl: row 1")
    texts = {
        part: [(text, trained) for text, _, trained in tokens["tokens"]]
        for part, tokens in row["parts"].items()
    }
    assert texts == {
        "prompt": [("<s>=0", False), ("0", False), ("a", False)],
        "chosen": [("b", True), ("c", True), ("</s>=1", True)],
        "rejected": [("d", True), ("</s>=1", True)],
    }
    assert "  prompt     3 tokens, not trained:  |<s>=0|0|a|" in printed
    assert "  chosen     3 tokens, trained:      |b|c|</s>=1|" in printed


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    # Checkpoints of another run in the parent folder are not replaced.
    (tmp_path / "checkpoint-1").mkdir()
    write_jsonl(tmp_path / "checkpoint-1" / "weights", [1])


def test_dry_run_on_short_disk_fails(recipe_data, dry_run, full_disk):
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, False)
    # One checkpoint, at the end: 4 bytes of weights and 8 of states per parameter; and model/.
    parameters = document["parameters"]
    assert document["disk"] == {
        "checkpoint": 12 * parameters,
        "checkpoints_kept": 1,
        "model": 4 * parameters,
        "needed": 16 * parameters,
        "free": 1000,
    }
    assert [(p["code"], p["path"]) for p in document["problems"]] == [("ENV050", "output_dir")]


def test_dry_run_for_another_machine_warns_of_short_disk(recipe_data, dry_run, full_disk):
    code, document, _ = dry_run(recipe_data, "dpo", "--devices", "1")
    assert (code, document["will_run"]) == (0, True)
    (warning,) = [line for line in document["warnings"] if "disk" in line]
    assert "its disk has 0.0 MiB free, if the run uses this machine's disk" in warning


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("method", METHODS)
def test_dry_run_writes_no_files(recipe_data, dry_run, tmp_path, tiny_model, method, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path) | listing(tiny_model)
    assert dry_run(recipe_data, method)[0] == 0
    after = listing(tmp_path) | listing(tiny_model)
    after.pop(str(tmp_path / "recipe.yaml"))
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


@pytest.mark.slow
def test_command_with_closed_output_exits_with_0(tmp_path):
    """Close the output after one line, as `prefcli ... | head -1` does."""
    root = Path(__file__).parents[2]
    command = ["data", "recipes/quickstart/orpo.yaml", "--sample", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcli", *command, f"output_dir={tmp_path / 'run'}"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)},
    )
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
