"""report.html of runs in every state, and the page that compares runs."""

from __future__ import annotations

import json
import re

import pytest

from prefcli import cli
from prefcli.report.compare_page import compare_page, differing, last_values, short_names
from prefcli.report.html import visible
from prefcli.report.panels import run_panels, subsample
from prefcli.report.run_data import read_run
from prefcli.report.run_page import marks, run_page, write_report
from prefcli.report.settings import own_settings
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
    """The page of a run folder with every file."""
    return run_page(read_run(dpo_run(tmp_path_factory.mktemp("runs") / "zephyr")))


def page_of(folder):
    return read(run_page(read_run(folder)))


def test_write_report_writes_into_the_run_folder(tmp_path):
    path = write_report(write_run(tmp_path / "zephyr", rows=[]))
    assert path == tmp_path / "zephyr" / "report.html"
    assert "prefcli dpo: zephyr" in read(path.read_text("utf-8")).text


def test_run_page_shows_everything_about_the_run(page):
    text = " ".join(read(page).text.split())
    for phrase in (
        "prefcli dpo: zephyr",
        "mistralai/Mistral-7B-v0.1 -> sft (runs/sft/model) -> dpo (this run)",
        "the policy prefers the chosen side in 77 % of held-out pairs",
        "200 steps, 1:02:03 in all, on NVIDIA H200, started 2026-03-01 10:00",
        "Held-out rows reward accuracy 0.770 all pairs tied at the start loss 0.5131 ▼ -0.1800 "
        "better 0.6931 at step 0",
        "perplexity 3.530 ▲ +0.670 worse 2.860 at step 0",
        "KL to the reference 0.3100 ▲ +0.3100 0.0000 at step 0",
        "Settings The complete recipe, with every default, is at the end of the page. "
        "model.name_or_path runs/sft/model dpo.beta 0.1",
        "loss 0.5100 0.4868 to 0.5083 outside",
        "reward accuracy 0.770 0.730 to 0.780 within",
        "rerun by others",
        "1 warning at step 120, gradient: the gradient norm is 44",
        "2 note at step 150, displacement: chosen responses are 0.31 nats",
        "train 5,000 4,990 10 1,234,567",
        "train: dropped: 10 rows, chosen and rejected are identical",
        "train: cut: 25 of 4990 rows (0.501 %)",
        "perplexity 2.810, passed",
        "NVIDIA H200 (cuda)",
        "71.25 GiB",
        "2026-03-01T10:30:00+0000, from checkpoint-100",
        "prefcli 0.1.0, torch 2.13.0, trl 1.16.0",
        "global_batch_size: 128",
        "loss_type sigmoid",
    ):
        assert phrase in text, phrase


def test_run_page_plots_every_measured_metric_with_marks(page):
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "Loss",
        "Reward margin",
        "Reward accuracy",
        "Log-probability per token",
        "Rewards",
        "Perplexity",
        "KL to the reference",
        "Gradient norm",
        "Learning rate",
        "Tokens per response",
        "Tokens per second",
    ]
    folded = page.index("7 more metrics")
    assert page.index("Log-probability per token</figcaption>") < folded
    assert folded < page.index("Rewards</figcaption>")
    pictures = re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)
    assert len(pictures) == len(titles)
    for picture in pictures:
        assert "var(--warning)" in picture  # step 120
        assert "var(--note)" in picture


def test_run_panels_omit_the_first_accuracies_which_are_ties(tmp_path):
    by_title = {panel.title: panel for panel in run_panels(read_run(dpo_run(tmp_path)))}
    assert [x for x, _ in by_title["Reward accuracy"].lines[0].held_out] == [100, 200]
    assert [x for x, _ in by_title["Reward margin"].lines[0].held_out] == [0, 100, 200]


def test_run_page_escapes_model_output(page, tmp_path):
    assert "<script" not in page
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \x1b[31m &amp; ```" in page
    rows = sample_rows(0)
    rows[0]["policy"]["greedy"] = "\ud800 \u202e </div>\n\ttail"
    page = run_page(read_run(write_run(tmp_path / "b", samples=rows)))
    assert "\\ud800 \\u202e &lt;/div&gt;\n\ttail" in page
    assert visible("👨\u200d👩 né \u00ad") == "👨\u200d👩 né \\xad"


def test_run_page_shows_samples_before_and_after(page):
    text = " ".join(read(page).text.split())
    assert (
        "How do I boil an egg? step 0 Answer of step 0 to prompt 0. "
        "step 200 Answer of step 200 to prompt 0. "
        "chosen in the data Put it into boiling water for eight minutes. "
        "rejected in the data No idea. "
        "Sampled, and at other steps step 100, greedy Answer of step 100 to prompt 0." in text
    )


def test_run_page_shows_the_pairs_with_the_lowest_and_highest_margins(page):
    text = " ".join(read(page).text.split())
    start, end = text.index("the worst and the best"), text.index("Samples")
    section = text[start:end]
    assert "At step 200. The margin is chosen minus rejected reward" in section
    assert (
        "-1.250 12 / 9 Question 0? eval.jsonl: row 0 Good answer 0. Bad answer 0. And so" in section
    )
    assert "And ... 315 more characters +0.500 12 / 9 Question 1?" in section
    assert section.index("Question 1?") < section.index("Highest margins")
    assert section.index("Highest margins") < section.index("+2.000")


def test_run_page_marks_answers_that_were_cut(tmp_path):
    rows = sample_rows(0)
    rows[0]["policy"]["cut"] = ["greedy"]
    text = " ".join(page_of(write_run(tmp_path, samples=rows)).text.split())
    assert "to prompt 0. ... cut at max_new_tokens" in text
    assert text.count("cut at max_new_tokens") == 1


def test_run_page_shows_the_settings_of_the_recipe(tmp_path):
    settings = {
        "output_dir": "runs/x",
        "dpo": {"beta": 5e-2},
        "data": {"train": [{"path": "a.jsonl"}], "eval": [{"path": "b"}, {"path": "c"}]},
        "training": {"gradient_checkpointing": False, "max_steps": None},
    }
    folder = write_run(tmp_path, run={**RUN, "settings": settings})
    assert own_settings(read_run(folder)) == {
        "dpo.beta": "0.05",
        "data.train.path": "a.jsonl",
        "data.eval[0].path": "b",
        "data.eval[1].path": "c",
        "training.gradient_checkpointing": "false",
    }


def test_run_page_without_evaluation_has_tiles_of_training_rows(tmp_path):
    folder = write_run(tmp_path, rows=[eval_row(0), train_row(1), train_row(100)])
    text = " ".join(page_of(folder).text.split())
    assert "Training rows reward accuracy" in text
    assert "better 0.6722 at step 1" in text.partition("Training rows")[2].partition("Settings")[0]


def test_run_page_shows_the_answers_of_another_reference(tmp_path):
    rows = sample_rows(0, 9)
    for row in rows:
        row["reference"]["greedy"] = "Of another mind."
    text = " ".join(page_of(write_run(tmp_path, samples=rows)).text.split())
    assert "to prompt 0. reference Of another mind. chosen in the data" in text


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
def test_run_page_of_a_run_in_any_state_renders(tmp_path, rows):
    run = {"status": "diverged", "method": "dpo"}
    assert page_of(write_run(tmp_path, run=run, recipe=None, rows=rows)).text


def test_run_page_of_malformed_entries_renders(tmp_path):
    run = {**RUN, "data": {"train": 3, "eval": None}, "lineage": "x", "expected": {"a": 1}}
    folder = write_run(
        tmp_path,
        run={**run, "effective": [], "versions": None, "device": 1, "resumed": 5},
        rows=[],
        health=[{"step": 1}, {"step": 2, "level": "?", "message": "<b>"}],
        samples=[{"step": 0}, {"step": 1, "policy": "x", "chosen": 3}],
    )
    assert "note at step 2, ?: <b>" in " ".join(page_of(folder).text.split())


def test_marks_close_together_share_a_number():
    steps = (10, 11, 50, 12, 90)
    advice = [{"step": step, "level": "warn"} for step in sorted(steps)]
    assert [(m.step, m.number) for m in marks(advice, (0, 100))] == [
        (10, "1-3"),
        (11, ""),
        (12, ""),
        (50, "4"),
        (90, "5"),
    ]


def test_subsample_keeps_peaks_and_gaps():
    points = [(float(i), 1.0) for i in range(100)]
    points[17] = (17.0, 9.0)
    points[18] = (18.0, -9.0)
    points[61] = (61.0, None)
    shown = subsample(points, limit=12)
    assert len(shown) <= 12
    assert {points[0], points[17], points[18], points[61], points[99]} <= {*shown}
    assert subsample(points[:12], limit=12) == points[:12]


def test_run_page_of_a_long_run_says_that_lines_are_subsampled(tmp_path):
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(1001)]
    assert "1000 points" in page_of(write_run(tmp_path / "long", rows=rows)).text
    assert "1000 points" not in page_of(write_run(tmp_path / "short", rows=rows[:1000])).text


def test_run_page_of_the_same_run_is_the_same(tmp_path):
    run = read_run(write_run(tmp_path, rows=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]))
    assert run_page(run) == run_page(run)


def two(tmp_path):
    dpo_run(tmp_path / "a" / "run")
    lower = RECIPE.replace("beta: 0.1", "beta: 0.05")
    write_run(tmp_path / "b" / "run", recipe=lower, rows=[eval_row(0), train_row(1)])
    return tmp_path / "a" / "run", tmp_path / "b" / "run"


def test_compare_page_shows_settings_and_metrics_that_differ(tmp_path):
    runs = [*map(read_run, two(tmp_path))]
    assert short_names(runs) == ["a/run", "b/run"]
    assert list(differing(runs)) == [("dpo.beta", ["0.1", "0.05"])]
    values = {row.key: (row.values, row.best) for row in last_values(runs, held_out=True)}
    assert values["loss"] == (["0.5131", "0.6931"], set())
    assert values["rewards/accuracies"] == (["0.770", "-"], set())
    assert values["perplexity"] == (["3.530", "2.860"], {1})
    text = " ".join(read(compare_page(runs)).text.split())
    assert "dpo.beta 0.1 0.05" in text
    assert "b/run 0.672 a/run 0.513" in text
    assert "step 0 a/run (held-out): 0.6931 b/run (held-out): 0.6931" in text


def test_compare_page_of_runs_with_other_eval_rows_has_no_best_value(tmp_path):
    dpo_run(tmp_path / "a")
    data = {**RUN["data"], "eval": {"fingerprint": "f"}}
    write_run(tmp_path / "b", run={**RUN, "data": data}, rows=[eval_row(0), eval_row(9)])
    runs = [read_run(tmp_path / name) for name in "ab"]
    assert not any(row.best for row in last_values(runs, held_out=True))
    assert "No value is marked as the best" in compare_page(runs)


def test_compare_page_shows_samples_of_shared_prompts_side_by_side(tmp_path):
    for name, steps in (("a", (0, 100)), ("b", (0, 200))):
        write_run(tmp_path / name, rows=[train_row(1)], samples=sample_rows(*steps))
    write_run(tmp_path / "c", rows=[train_row(1)])
    runs = [read_run(tmp_path / name) for name in "abc"]
    text = " ".join(read(compare_page(runs)).text.split())
    assert (
        "How do I boil an egg? a, step 100 Answer of step 100 to prompt 0. "
        "b, step 200 Answer of step 200 to prompt 0. "
        "chosen in the data Put it into boiling water for eight minutes." in text
    )


def test_differing_omits_defaults_of_another_version(tmp_path):
    new = RECIPE + "added_later: 2\n"
    settings = {"dpo": {"beta": 0.1}, "seed": 1}
    for name, recipe in (("a", RECIPE), ("b", new.replace("seed: 42", "seed: 1"))):
        write_run(tmp_path / name, run={**RUN, "settings": settings}, recipe=recipe)
    runs = [read_run(tmp_path / name) for name in "ab"]
    assert list(differing(runs)) == [("seed", ["42", "1"])]


def test_compare_page_reuses_colours_after_eight_runs(tmp_path):
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


def test_report_of_one_run_writes_its_page(tmp_path, monkeypatch, capsys):
    folder = dpo_run(tmp_path / "zephyr")
    (folder / "model").mkdir()
    assert run_cli(monkeypatch, f"{folder}/model/") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("zephyr: dpo: Finished: the policy prefers the chosen side in 77 %")
    assert "  eval loss 0.6931 -> 0.5131" in lines
    assert lines[-1] == f"written to {folder}/report.html"
    read((folder / "report.html").read_text("utf-8"))


def test_report_of_several_runs_writes_a_comparison(tmp_path, monkeypatch, capsys):
    first, second = two(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, first, second, first) == 0
    out = capsys.readouterr().out
    assert "settings that differ:\n  dpo.beta: 0.1 | 0.05\n" in out
    assert out.endswith("written to comparison.html\n")
    assert "2 runs side by side" in (tmp_path / "comparison.html").read_text("utf-8")


def test_report_json_lists_pages_verdicts_and_settings(tmp_path, monkeypatch, capsys):
    first, second = two(tmp_path)
    page = tmp_path / "pages" / "x.html"
    assert run_cli(monkeypatch, first, second, "--html", page, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["page"] == str(page)
    assert document["settings"] == {"dpo.beta": ["0.1", "0.05"]}
    outcome = document["runs"][0]
    assert (outcome["method"], outcome["state"], outcome["level"]) == ("dpo", "finished", "good")
    assert [advice["rule"] for advice in outcome["health"]] == ["gradient", "displacement"]
    assert page.is_file()


def test_report_watch_rewrites_the_page_until_the_run_ends(tmp_path, monkeypatch, capsys):
    page = tmp_path / "live.html"
    running = {**RUN, "status": "running"}
    folder = write_run(tmp_path / "zephyr", run=running, rows=[eval_row(0), train_row(1)])
    pages = []

    def pause(seconds):
        pages.append(page.read_text("utf-8"))
        status = "running" if len(pages) < 2 else "finished"
        write_run(folder, run={**RUN, "status": status}, rows=[train_row(len(pages) * 10)])

    monkeypatch.setattr("prefcli.cli.report.time.sleep", pause)
    assert run_cli(monkeypatch, folder, "--watch", "--html", page) == 0
    assert [read(text).text.count("still running") for text in pages] == [1, 1]
    assert all('<meta http-equiv="refresh" content="10">' in text for text in pages)
    assert pages[0] != pages[1]
    assert "http-equiv" not in page.read_text("utf-8")
    out = capsys.readouterr().out
    assert out.startswith(f"watching until the end of the run or Ctrl-C; open {page}")
    assert "zephyr: dpo: Finished" in out


def test_report_of_a_wrong_path_exits_with_2(tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, tmp_path) == 2
    assert "RUN100" in capsys.readouterr().err
    folder = write_run(tmp_path / "run", rows=[])
    assert run_cli(monkeypatch, folder, "--html", folder / "run.json" / "page.html") == 2
    output = capsys.readouterr()
    assert "can't write" in output.err
    assert not output.out  # it was found before the work


def test_advice_has_the_keys_of_health_jsonl():
    assert {"rule", "level", "step", "seen", "means", "change", "message"} == set(ADVICE[0])
