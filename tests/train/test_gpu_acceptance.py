"""The GPU acceptance script, run on a CPU with tiny sizes."""

from __future__ import annotations

import functools
import json

import pytest

from scripts.acceptance import child, parent
from scripts.acceptance.parts import PARTS
from scripts.acceptance.rows import Sheet
from scripts.acceptance.tables import printed
from tests.support.processes import Forked


@pytest.mark.memory
@pytest.mark.timeout(900)
def test_gpu_acceptance_on_a_cpu_runs_every_part(tmp_path, capfd):
    def forked(words, log, environment) -> Forked:
        return Forked(functools.partial(child.main, words), log)

    arguments = ["--cpu", "--quick", "--seconds", "800", "--out", str(tmp_path)]
    code = parent.main(arguments, forked)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    rows = results["rows"]
    assert [row for row in rows if row["verdict"] == "FAIL"] == []
    assert {row["part"] for row in rows} == set(PARTS)
    skipped = {row["value"] for row in rows if row["verdict"] == "skipped"}
    assert all("CUDA" in why or "GPUs" in why or "deepspeed" in why for why in skipped), skipped
    assert code == 0
    assert len(capfd.readouterr().out) < 12_000


def test_sheet_when_a_case_raises_runs_the_next(tmp_path):
    sheet = Sheet(tmp_path / "rows.jsonl", "facts")

    def broken() -> None:
        raise ValueError("no such kernel")

    sheet.run("one", broken)
    sheet.run("two", lambda: sheet.at_most("error", 0.5, 1.0))
    sheet.run("three", lambda: sheet.at_most("error", float("nan"), 1.0))
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [(line["case"], line["verdict"]) for line in lines if "verdict" in line]
    assert rows == [("one", "FAIL"), ("two", "ok"), ("three", "FAIL")]


def test_printed_puts_failed_rows_first_and_stays_short():
    rows = [
        {
            "part": "kernels",
            "case": f"case {at}",
            "figure": "error",
            "value": "x" * 500,
            "bound": "<= 1",
            "verdict": "FAIL" if at == 400 else "ok",
        }
        for at in range(500)
    ]
    text = printed(rows)
    assert len(text) < 12_000
    assert text.splitlines()[1].startswith("FAIL: kernels: case 400")
