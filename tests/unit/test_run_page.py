"""report.html of runs in every state, and runs side by side."""

from __future__ import annotations

import json
import re

import pytest

from prefcli import cli
from prefcli.report.compare_page import compare_page, differing, figures, short_names
from prefcli.report.html import visible
from prefcli.report.panels import panels, thinned
from prefcli.report.run_data import read_run
from prefcli.report.run_page import marks, run_page, write_report
from tests.support.pages import read
from tests.support.run_dirs import (
    ADVICE,
    RECIPE,
    RUN,
    dpo_run,
    eval_row,
    sample_rows,
    train_row,
    write_run,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of a run with everything in it."""
    return run_page(read_run(dpo_run(tmp_path_factory.mktemp("runs") / "zephyr")))


def page_of(folder):
    return read(run_page(read_run(folder)))


def test_the_report_of_a_folder(tmp_path):
    path = write_report(write_run(tmp_path / "zephyr", rows=[]))
    assert path == tmp_path / "zephyr" / "report.html"
    assert "prefcli dpo: zephyr" in read(path.read_text("utf-8")).text


def test_the_page_tells_the_run(page):
    text = " ".join(read(page).text.split())
    for told in (
        "prefcli dpo: zephyr",
        "mistralai/Mistral-7B-v0.1 -> sft (runs/sft/model) -> dpo (this run)",
        "the policy prefers the chosen side in 77 % of the held-out pairs",
        "perplexity a token 2.8600 3.5300",
        "loss 0.5100 0.4868 to 0.5083 outside",
        "preference accuracy 0.7700 0.7300 to 0.7800 inside",
        "rerun by others",
        "1 warning at step 120, gradient: the gradient norm is 44",
        "2 note at step 150, displacement: chosen responses are 0.31 nats",
        "train 5,000 4,990 10 1,234,567",
        "train: dropped: 10 rows, chosen and rejected are identical",
        "train: cut: 25 of 4990 rows (0.501 %)",
        "perplexity 2.8100, passed",
        "NVIDIA H200 (cuda)",
        "71.25 GiB",
        "2026-03-01T10:30:00+0000, from checkpoint-100",
        "prefcli 0.1.0, torch 2.13.0, trl 1.16.0",
        "global_batch_size: 128",
        "loss_type sigmoid",
    ):
        assert told in text, told


def test_all_curves_are_there_with_their_marks(page):
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "Loss",
        "Reward margin",
        "Preference accuracy",
        "Rewards",
        "Log-probability a token",
        "Perplexity of chosen responses",
        "KL to the reference",
        "Gradient norm",
        "Learning rate",
        "Tokens of a response",
        "Tokens a second",
    ]
    assert page.count("<svg") == len(titles)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "var(--warning)" in picture  # of step 120
        assert "var(--note)" in picture
        assert not re.search(r"#0102[0-9a-f]{2}", picture)


def test_the_first_accuracies_are_ties_and_not_drawn(tmp_path):
    found = {panel.title: panel for panel in panels(read_run(dpo_run(tmp_path)))}
    assert [x for x, _ in found["Preference accuracy"].lines[0].held_out] == [100, 200]
    assert [x for x, _ in found["Reward margin"].lines[0].held_out] == [0, 100, 200]


def test_what_a_model_writes_is_text(page, tmp_path):
    assert "<script" not in page
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \x1b[31m &amp; ```" in page
    rows = sample_rows(0)
    rows[0]["policy"]["greedy"] = "\ud800 \u202e </div>\n\ttail"
    page = run_page(read_run(write_run(tmp_path / "b", samples=rows)))
    assert "\\ud800 \\u202e &lt;/div&gt;\n\ttail" in page
    assert visible("👨\u200d👩 né \u00ad") == "👨\u200d👩 né \\xad"


def test_samples_before_and_after(page):
    text = " ".join(read(page).text.split())
    assert (
        "How do I boil an egg? step 0 Answer of step 0 to prompt 0. "
        "step 200 Answer of step 200 to prompt 0. "
        "chosen in the data Put it into boiling water for eight minutes. "
        "rejected in the data No idea. "
        "Sampled, and at other steps step 100, greedy Answer of step 100 to prompt 0." in text
    )


def test_another_reference_stands_beside(tmp_path):
    rows = sample_rows(0, 9)
    for row in rows:
        row["reference"]["greedy"] = "Of another mind."
    text = " ".join(page_of(write_run(tmp_path, samples=rows)).text.split())
    assert "to prompt 0. the reference Of another mind. chosen in the data" in text


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [train_row(1)],
        [eval_row(0)],
        [eval_row(0), {"step": 1, "loss": None, "grad_norm": None}],
        [{"step": 0, "eval_loss": 7.4}, {"step": 1, "loss": 7.4, "mean_token_accuracy": 0.0}],
        [{"step": 1, "loss": 0.5, "kl": 0.0, "rewards/margins": 0.1}],
        [{"step": 1, "loss": 1.2, "nll_loss": 1.1, "log_odds_chosen": -0.1}],
        [{"step": 1, "loss": 1e308}, {"step": 2, "loss": -1e308}],
        [
            {"step": 5, "grad_norm": 1.0},
            {"step": 6, "grad_norm": 1.0},
            {"step": 7, "grad_norm": 1e9},
        ],
    ],
)
def test_a_run_in_any_state_has_a_page(tmp_path, rows):
    run = {"status": "diverged", "method": "dpo"}
    assert page_of(write_run(tmp_path, run=run, recipe=None, rows=rows)).text


def test_entries_of_no_shape_are_borne(tmp_path):
    run = {**RUN, "data": {"train": 3, "eval": None}, "lineage": "x", "expected": {"a": 1}}
    folder = write_run(
        tmp_path,
        run={**run, "effective": [], "versions": None, "device": 1, "resumed": 5},
        rows=[],
        health=[{"step": 1}, {"step": 2, "level": "?", "message": "<b>"}],
        samples=[{"step": 0}, {"step": 1, "policy": "x", "chosen": 3}],
    )
    assert "note at step 2, ?: <b>" in " ".join(page_of(folder).text.split())


def test_numbers_of_near_marks_are_joined():
    steps = (10, 11, 50, 12, 90)
    said = [{"step": step, "level": "warn"} for step in sorted(steps)]
    assert [(m.step, m.number) for m in marks(said, (0, 100))] == [
        (10, "1-3"),
        (11, ""),
        (12, ""),
        (50, "4"),
        (90, "5"),
    ]


def test_thinning_keeps_peaks_and_gaps():
    points = [(float(i), 1.0) for i in range(100)]
    points[17] = (17.0, 9.0)
    points[18] = (18.0, -9.0)
    points[61] = (61.0, None)
    kept = thinned(points, most=12)
    assert len(kept) <= 12
    assert {points[0], points[17], points[18], points[61], points[99]} <= {*kept}
    assert thinned(points[:12], most=12) == points[:12]


def test_a_long_run_says_that_it_is_thinned(tmp_path):
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(1001)]
    assert "thinned to 1000 points" in page_of(write_run(tmp_path / "long", rows=rows)).text
    assert "thinned" not in page_of(write_run(tmp_path / "short", rows=rows[:1000])).text


def test_the_same_run_makes_the_same_page(tmp_path):
    run = read_run(write_run(tmp_path, rows=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]))
    assert run_page(run) == run_page(run)


def two(tmp_path):
    dpo_run(tmp_path / "a" / "run")
    lower = RECIPE.replace("beta: 0.1", "beta: 0.05")
    write_run(tmp_path / "b" / "run", recipe=lower, rows=[eval_row(0), train_row(1)])
    return tmp_path / "a" / "run", tmp_path / "b" / "run"


def test_runs_side_by_side(tmp_path):
    runs = [*map(read_run, two(tmp_path))]
    assert short_names(runs) == ["a/run", "b/run"]
    assert list(differing(runs)) == [("dpo.beta", ["0.1", "0.05"])]
    told = list(figures(runs))
    assert ("on held-out rows", "loss", ["0.5131", "0.6931"]) in told
    assert ("on held-out rows", "rewards/accuracies", ["0.7700", "-"]) in told
    text = " ".join(read(compare_page(runs)).text.split())
    assert "dpo.beta 0.1 0.05" in text
    assert "Loss a/run b/run" in text


def test_one_line_a_run_and_a_colour_each(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    runs = [read_run(write_run(tmp_path / f"run{at}", rows=rows)) for at in range(9)]
    page = compare_page(runs)
    assert read(page)
    assert all(f"var(--run{at})" in page for at in range(8))
    assert "var(--run8)" not in page


def run_cli(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prefcli", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_command(tmp_path, monkeypatch, capsys):
    folder = dpo_run(tmp_path / "zephyr")
    (folder / "model").mkdir()
    assert run_cli(monkeypatch, f"{folder}/model/") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("zephyr: dpo: Finished: the policy prefers the chosen side in 77 %")
    assert "  eval loss 0.6931 -> 0.5131" in lines
    assert lines[-1] == f"written to {folder}/report.html"
    read((folder / "report.html").read_text("utf-8"))


def test_the_command_with_several(tmp_path, monkeypatch, capsys):
    first, second = two(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, first, second, first) == 0
    out = capsys.readouterr().out
    assert "settings that differ:\n  dpo.beta: 0.1 | 0.05\n" in out
    assert out.endswith("written to comparison.html\n")
    assert "2 runs side by side" in (tmp_path / "comparison.html").read_text("utf-8")


def test_the_command_for_a_script(tmp_path, monkeypatch, capsys):
    first, second = two(tmp_path)
    page = tmp_path / "pages" / "x.html"
    assert run_cli(monkeypatch, first, second, "--html", page, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == str(page)
    assert found["settings"] == {"dpo.beta": ["0.1", "0.05"]}
    told = found["runs"][0]
    assert (told["method"], told["state"], told["level"]) == ("dpo", "finished", "good")
    assert told["figures"]["perplexity"] == {"first": 2.86, "last": 3.53}
    assert told["figures"]["rewards/margins"] == {"first": None, "last": 1.05}
    assert [advice["check"] for advice in told["health"]] == ["gradient", "displacement"]
    assert page.is_file()


def test_the_command_on_what_is_no_run(tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, tmp_path) == 2
    assert "no run folder, there is no run.json in it" in capsys.readouterr().err
    folder = write_run(tmp_path / "run", rows=[])
    assert run_cli(monkeypatch, folder, "--html", folder / "run.json" / "page.html") == 2
    assert "can't write" in capsys.readouterr().err


def test_advice_fits_the_contract():
    assert {"check", "level", "step", "seen", "means", "change", "message"} == set(ADVICE[0])
