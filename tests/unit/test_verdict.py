"""What became of a run, from literal rows."""

from __future__ import annotations

import pytest

from prefcli.report.metrics import figure, same
from prefcli.report.run_data import read_run
from prefcli.report.verdict import verdict
from tests.support.run_dirs import ADVICE, RUN, dpo_run, eval_row, train_row, write_run

SFT = {
    **{key: value for key, value in RUN.items() if key not in ("step_zero", "expected")},
    "method": "sft",
}


def of(tmp_path, rows, *, run=RUN, health=None):
    return verdict(read_run(write_run(tmp_path, run=run, rows=rows, health=health)))


def ended(tmp_path, *, run=RUN, health=None, **figures):
    """A run whose last evaluation has these figures."""
    rows = [eval_row(0), train_row(1), eval_row(200, **figures)]
    return of(tmp_path, rows, run=run, health=health)


def test_a_run_that_went_well(tmp_path):
    found = verdict(read_run(dpo_run(tmp_path)))
    assert (found.state, found.level, found.steps) == ("finished", "good", (0, 200))
    assert (
        found.title == "Finished: the policy prefers the chosen side in 77 % of the held-out pairs"
    )
    assert [str(gain) for gain in found.gains] == [
        "eval loss 0.6931 -> 0.5131",
        "preference accuracy 0.7700",
        "reward margin 1.0500",
        "log-probability of chosen, a token -1.0500 -> -1.2600",
        "log-probability of rejected, a token -1.0800 -> -1.5800",
        "perplexity a token 2.8600 -> 3.5300",
        "KL to the reference, nats a token 0.0000 -> 0.3100",
    ]
    comparison, chosen, health = found.words
    assert comparison == "for comparison: 7B models end DPO on UltraFeedback at 74 to 77 %"
    assert "less likely than at the start, by 0.21 nats a token" in chosen
    assert health == "health: 1 warning (gradient), 1 note (displacement)"


@pytest.mark.parametrize(
    ("accuracy", "level", "words"),
    [
        (0.95, "good", "the policy tells chosen from rejected on held-out rows"),
        (0.58, "warning", "the policy hardly tells chosen from rejected"),
        (0.46, "warning", "the policy hardly tells chosen from rejected"),
        (0.3, "warning", "the policy prefers the rejected side on held-out rows (accuracy 0.30)"),
    ],
)
def test_accuracies(tmp_path, accuracy, level, words):
    found = ended(tmp_path, **{"rewards/accuracies": accuracy})
    assert found.level == level
    assert words in found.title
    assert found.title.startswith("Finished: " if level == "good" else "Finished, but ")


def test_few_rows_prove_nothing(tmp_path):
    run = {**RUN, "data": {"eval": {"kept": 9}}}  # 1/sqrt(9) = 0.33 is within chance
    found = ended(tmp_path, run=run, **{"rewards/accuracies": 0.78})
    assert found.title == ("Finished: 9 held-out pairs are too few to tell an accuracy from chance")
    assert "only 9 rows were held out, so these figures are rough" in found.words
    assert ended(tmp_path, run=run, **{"rewards/accuracies": 1.0}).level == "good"


@pytest.mark.parametrize(
    ("figures", "health", "words"),
    [
        ({"loss": 1.05}, None, "is 1.5 times that at the start"),
        ({"loss": None}, None, "its loss on held-out rows is not finite"),
        (
            {"logps/rejected_per_token": -50.5},
            None,
            "collapsed (rejected at -50.5000 nats a token)",
        ),
        ({}, [{**ADVICE[0], "check": "collapse", "level": "warn"}], "the distribution collapsed"),
    ],
)
def test_a_ruined_run_is_not_called_good(tmp_path, figures, health, words):
    found = ended(tmp_path, health=health, **{"rewards/accuracies": 0.99, **figures})
    assert (found.state, found.level) == ("finished", "error")
    assert found.title.startswith("Finished, but ")
    assert words in found.title


def test_losses_around_the_limit_are_not_called_ruined(tmp_path):
    found = ended(tmp_path, loss=1.03)  # 1.486 times ln 2
    assert found.level == "good"
    assert any("eval loss ended above its start (0.6931 -> 1.0300)" in w for w in found.words)


def test_a_lowest_loss_on_the_way_is_told(tmp_path):
    rows = [eval_row(0), eval_row(100, loss=0.5), eval_row(200, loss=0.52)]
    assert any("lowest at step 100 (0.5000) and has risen" in w for w in of(tmp_path, rows).words)
    rows[-1] = eval_row(200, loss=0.505)
    assert not any("lowest" in word for word in of(tmp_path, rows).words)


def test_small_changes_are_not_called_changes(tmp_path):
    figures = {"loss": 0.6900, "logps/chosen_per_token": -1.06, "reference_kl": 0.0004}
    found = ended(tmp_path, **{**figures, "perplexity": 2.88})
    lines = [str(gain) for gain in found.gains]
    assert "eval loss 0.6931 -> 0.6900, no change to speak of" in lines
    assert "perplexity a token 2.8600 -> 2.8800, no change to speak of" in lines
    assert "the policy has hardly moved from its reference" in found.words
    assert not any("less likely" in word for word in found.words)


def test_a_gain_that_is_length(tmp_path):
    sides = {"rewards/accuracies_chosen_longer": 0.9, "rewards/accuracies_chosen_shorter": 0.6}
    assert any("0.90 where the chosen side is longer" in w for w in ended(tmp_path, **sides).words)


def test_sums_where_no_means_were_measured(tmp_path):
    rows = [
        {"step": 0, "eval_loss": 0.7, "eval_logps/chosen": -283.0},
        {"step": 200, "eval_loss": 0.5, "eval_logps/chosen": -350.0},
    ]
    found = of(tmp_path, rows)
    assert "log-probability of chosen -283.0 -> -350.0" in map(str, found.gains)
    assert any("less likely than at the start, by 67 nats;" in word for word in found.words)


@pytest.mark.parametrize(
    ("last", "level", "words"),
    [
        (0.4, "good", "fell from 2.0000 to 0.4000"),
        (1.99, "warning", "is what it was at the start"),
        (2.5, "warning", "rose from 2.0000 to 2.5000"),
        (3.5, "error", "is 1.8 times that at the start"),
    ],
)
def test_sft(tmp_path, last, level, words):
    rows = [{"step": 0, "eval_loss": 2.0}, {"step": 9, "eval_loss": last}]
    found = of(tmp_path, rows, run=SFT)
    assert found.level == level
    assert words in found.title


def test_kto_has_no_accuracies(tmp_path):
    rows = [
        {"step": 0, "eval_loss": 0.5, "eval_rewards/margins": 0.0},
        {"step": 9, "eval_loss": 0.4, "eval_rewards/margins": 1.2},
    ]
    found = of(tmp_path, rows, run={**RUN, "method": "kto"})
    assert found.title == "Finished: good answers earn 1.2000 more reward than bad ones, held out"
    rows[1]["eval_rewards/margins"] = -0.1
    assert of(tmp_path, rows, run={**RUN, "method": "kto"}).level == "warning"


def test_without_a_reference_the_start_counts(tmp_path):
    run = {**SFT, "method": "orpo"}
    rows = [
        {"step": 0, "eval_loss": 1.0, "eval_rewards/accuracies": 0.93},
        {"step": 9, "eval_loss": 0.9, "eval_rewards/accuracies": 0.95},
    ]
    found = of(tmp_path, rows, run=run)
    assert found.title == (
        "Finished: the policy tells chosen from rejected about as well as at the start"
    )
    assert found.level == "note"
    rows[1]["eval_rewards/accuracies"] = 0.7
    assert of(tmp_path, rows, run=run).level == "warning"


def test_runs_that_did_not_finish(tmp_path):
    rows = [eval_row(0), train_row(1), {"step": 2, "loss": None}]
    diverged = {**RUN, "status": "diverged", "why": "loss is nan at step 2"}
    found = of(tmp_path, rows, run=diverged)
    assert (found.state, found.title) == ("diverged", "Diverged at step 2")
    assert found.words == ["loss is nan at step 2", "no final model was written"]

    stop = {**ADVICE[0], "check": "collapse", "level": "stop", "message": "rejected at -60"}
    found = of(tmp_path, rows, run=diverged, health=[stop])
    assert (found.state, found.title) == (
        "stopped",
        "Stopped at step 2 by the health rule collapse",
    )
    assert found.words[0] == "rejected at -60"

    gate = {"perplexity": 812.0, "max_perplexity": 10.0, "passed": False}
    found = of(tmp_path, [], run={**RUN, "status": "failed", "check_sft": gate})
    assert (found.state, found.title) == ("failed", "Failed before its first step")
    assert found.words[0] == "check-sft said no: perplexity 812.0 is above 10.0"

    found = of(tmp_path, rows, run={**RUN, "status": "running"})
    assert (found.state, found.level) == ("running", "note")
    assert found.title == "Not finished: still running, or killed at step 2"

    why = "pre-empted (SIGTERM) at step 2: saved checkpoint-2 in 3.1 s"
    found = of(tmp_path, rows, run={**RUN, "status": "preempted", "why": why})
    assert (found.state, found.level) == ("preempted", "note")
    assert found.title == "Pre-empted at step 2, not finished"
    assert found.words[:2] == [why, "no final model was written"]


def test_nothing_held_out(tmp_path):
    found = of(tmp_path, [train_row(1), train_row(200)])
    assert found.gains == []
    assert found.lines() == ["no eval data, so nothing held out was measured (data.eval)"]


@pytest.mark.parametrize("rows", [[], [{"step": 3}], [{"step": 0, "eval_loss": None}]])
@pytest.mark.parametrize("run", [{}, {"status": "finished"}, {**RUN, "data": [1]}])
def test_what_is_missing_raises_nothing(tmp_path, rows, run):
    assert of(tmp_path, rows, run=run).title


def test_figures():
    assert [*map(figure, (0.69314, -1234.56, 5e-7, 0, -0.0, 1e38, None, float("nan")))] == [
        "0.6931",
        "-1,234.6",
        "5e-07",
        "0.0000",
        "0.0000",
        "1e+38",
        "not finite",
        "not finite",
    ]
    assert same("rewards/accuracies", 0.5, 0.59, 100)  # two standard errors at 0.5 are 0.1
    assert not same("rewards/accuracies", 0.5, 0.59, 10_000)
    assert same("loss", 2.0, 2.01)
    assert not same("loss", 2.0, 2.03)
