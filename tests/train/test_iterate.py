"""On-policy rounds with an adapter, from the start to the comparison."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from prefcli.report.run_data import read_run
from tests.support.light_half import run
from tests.support.tiny_runs import ANYTHING, pairs, write_jsonl

JUDGE = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"id": row["id"], "score": len(set(row["completion"]))}), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["previous", "start"])
def test_rounds_continue_the_adapter_of_the_round_before(
    recipe_data, tiny_model, tmp_path, monkeypatch, capsys, reference
):
    (tmp_path / "judge.py").write_text(JUDGE)
    recipe_data |= {
        "lora": {"rank": 2},
        "judge": {"executable": {"command": [sys.executable, str(tmp_path / "judge.py")]}},
        "pairs": {"max_new_tokens": 8, "unfinished": "keep", "samples_per_prompt": 4},
    }
    recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "e.jsonl", pairs(9)))}
    recipe_data["data"]["checks"] = ANYTHING
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(recipe_data))
    options = ("--rounds", "2", "--method", "dpo", "--reference", reference, "--json")
    code = run(monkeypatch, "iterate", str(recipe), *options)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)
    numbers = [entry["number"] for entry in document["rounds"]]
    assert numbers == [0, 1, 2][: len(numbers)]
    assert len(numbers) >= 2
    folder = tmp_path / "run-rounds"
    for number in numbers[1:]:
        made = read_run(folder / f"round-{number}" / "run")
        assert made.status == "finished"
        is_named = number > 1 and reference == "start"
        named = str(tiny_model) if is_named else None
        assert made.recipe_value("reference.name_or_path") == named
        assert made.recipe_value("model.adapter") == ("continue" if number > 1 else None)
        assert made.record["data"]["train"]["read"] == document["rounds"][number]["rows"]
