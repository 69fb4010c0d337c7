"""The quickstart shows a real effect, and its script writes the shipped files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefcli.evaluation.check_sft import check_sft
from prefcli.evaluation.generate import Sampling, generate_answers
from prefcli.recipe import load
from prefcli.training.run import train

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"


@pytest.mark.slow
def test_quickstart_dpo_ranks_nearly_all_held_out_pairs(tmp_path):
    sft = load(str(QUICKSTART / "sft.yaml"), [f"output_dir={tmp_path / 'sft'}"]).recipe
    sft_model = train(sft, sft.sft).model
    start = f"model.name_or_path={sft_model}"
    dpo = load(str(QUICKSTART / "dpo.yaml"), [f"output_dir={tmp_path / 'dpo'}", start]).recipe
    before = check_sft(dpo)
    assert before.passed
    assert 0.35 < before.chosen_more_likely < 0.65

    outcome = train(dpo, dpo.dpo)
    assert outcome.metrics["eval_rewards/accuracies"] > 0.9
    aligned = f"model.name_or_path={outcome.model}"
    after = check_sft(load(str(QUICKSTART / "dpo.yaml"), [aligned]).recipe)
    assert after.passed
    assert after.chosen_more_likely > 0.9

    models = [sft_model, outcome.model]
    prompts = str(QUICKSTART / "data" / "prompts.jsonl")
    *_, rows = generate_answers(models, prompts, None, Sampling(48))
    assert len(rows) == 5
    changed = [row for row in rows if len(set(row["completions"].values())) == 2]
    assert len(changed) >= 3


def test_make_quickstart_writes_the_shipped_files(tmp_path):
    """Compare the bytes, so that every shipped file can be reproduced."""
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_quickstart.py"), "--out", str(tmp_path)],
        check=True,
        timeout=120,
        capture_output=True,
    )
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(written) == 11
    for path in written:
        assert (tmp_path / path).read_bytes() == (QUICKSTART / path).read_bytes(), path
