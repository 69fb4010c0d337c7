"""The outcome of a run as text, from literal rows."""

from __future__ import annotations

import pytest

from prefcli.report.held_out import is_unchanged
from prefcli.report.run_data import read_run
from prefcli.report.verdict import as_document, verdict
from tests.support.run_dirs import ADVICE, RUN, dpo_run, eval_row, train_row, write_run

SFT = {
    **{key: value for key, value in RUN.items() if key not in ("step_zero", "expected")},
    "method": "sft",
}


def verdict_of(tmp_path, rows, *, run=RUN, health=None):
    return verdict(read_run(write_run(tmp_path, run=run, rows=rows, health=health)))


def finished_with(tmp_path, *, run=RUN, health=None, **metrics):
    """The verdict of a run whose last evaluation has these metrics."""
    rows = [eval_row(0), train_row(1), eval_row(200, **metrics)]
    return verdict_of(tmp_path, rows, run=run, health=health)


def test_verdict_of_a_good_run_lists_changes_and_health(tmp_path):
    outcome = verdict(read_run(dpo_run(tmp_path)))
    assert (outcome.state, outcome.level, outcome.eval_steps) == ("finished", "good", (0, 200))
    assert outcome.title == "Finished: the policy prefers the chosen side in 77 % of held-out pairs"
    assert [str(change) for change in outcome.changes] == [
        "eval loss 0.6931 -> 0.5131",
        "reward accuracy 0.770",
        "reward margin +1.0500",
        "chosen logp per token -1.050 -> -1.260",
        "rejected logp per token -1.080 -> -1.580",
        "perplexity 2.860 -> 3.530",
        "KL to the reference 0.0000 -> 0.3100",
    ]
    comparison, chosen, health = outcome.details
    assert comparison == "for comparison: 7B models reach 74 to 77 % with DPO on UltraFeedback"
    assert "became less likely, by 0.21 nats per token" in chosen
    assert health == "health: 1 warning (gradient), 1 note (displacement)"
    assert outcome.lines()[-3:] == outcome.details


@pytest.mark.parametrize(
    ("accuracy", "level", "text"),
    [
        (0.95, "good", "the policy separates chosen from rejected on held-out pairs"),
        (0.58, "warning", "the policy hardly separates chosen from rejected"),
        (0.46, "warning", "the policy hardly separates chosen from rejected"),
        (0.3, "warning", "the policy prefers the rejected side of held-out pairs (accuracy 0.30)"),
    ],
)
def test_verdict_follows_the_accuracy(tmp_path, accuracy, level, text):
    outcome = finished_with(tmp_path, **{"rewards/accuracies": accuracy})
    assert outcome.level == level
    assert text in outcome.title
    assert outcome.title.startswith("Finished: " if level == "good" else "Finished, but ")


def test_verdict_of_a_run_that_did_not_move_is_not_about_labels(tmp_path):
    outcome = finished_with(tmp_path, **{"rewards/accuracies": 0.0, "rewards/margins": 0.0})
    assert outcome.level == "warning"
    assert "did not move from its reference" in outcome.title


@pytest.mark.parametrize(
    ("metrics", "level", "text"),
    [
        ({"loss": 0.02, "reward": -0.02}, "warning", "the score of held-out completions fell"),
        ({"loss": 0.0, "unscored": 1.0}, "warning", "the judge scored no completion"),
        # Two standard errors over 1,000 completions: 2 sqrt(2 / 1000) = 0.089.
        ({"reward": 0.07, "reward_std": 1.0}, "note", "completions changed within its error: from"),
        ({"reward": 0.09, "reward_std": 1.0}, "good", "the score of held-out completions rose"),
    ],
    ids=["a small loss that doubles", "a judge that gives null", "within error", "beyond error"],
)
def test_verdict_of_scored_completions_is_about_their_score(tmp_path, metrics, level, text):
    rows = [
        {"step": 0, "eval_loss": 0.01, "eval_unscored": 0.0, "eval_reward": -0.01}
        | {"eval_reward_std": metrics.get("reward_std")},
        {"step": 9, "eval_unscored": 0.0, **{f"eval_{k}": v for k, v in metrics.items()}},
    ]
    run = {**RUN, "data": {"eval": {"kept": 1000}}}
    outcome = verdict_of(tmp_path, rows, run=run)
    assert (outcome.level, text in outcome.title) == (level, True)
    assert not [detail for detail in outcome.details if "overtrained" in detail]


def test_verdict_names_opposite_labels_before_a_ruined_model(tmp_path):
    rows = [eval_row(0), *(train_row(step) for step in range(100, 201, 20))]
    rows.append(eval_row(200, **{"rewards/accuracies": 0.1, "loss": 2.5}))
    outcome = verdict_of(tmp_path, rows)
    assert outcome.level == "error"
    assert "labels of data.eval look opposite to those of data.train" in outcome.title
    assert any("got much worse" in detail for detail in outcome.details)


def test_verdict_of_answers_that_loop_is_not_good(tmp_path):
    rows = [
        eval_row(0, samples_repeated=0.08),
        train_row(1),
        eval_row(200, samples_repeated=0.61),
    ]
    outcome = verdict_of(tmp_path, rows)
    assert outcome.level == "warning"
    assert "greedy answers loop: 61% of their 4-grams" in outcome.title
    rows[0]["eval_samples_repeated"] = 0.7
    outcome = verdict_of(tmp_path, rows)
    assert outcome.level == "good"
    assert "greedy answers loop, as they did at the start: 61%" in "".join(outcome.details)


def test_verdict_on_few_rows_does_not_judge_an_accuracy_near_chance(tmp_path):
    run = {**RUN, "data": {"eval": {"kept": 9}}}  # the error is 1/sqrt(9) = 0.33
    outcome = finished_with(tmp_path, run=run, **{"rewards/accuracies": 0.78})
    assert "9 held-out pairs are too few" in outcome.title
    assert "only 9 rows were held out, so these metrics are noisy" in outcome.details
    assert finished_with(tmp_path, run=run, **{"rewards/accuracies": 1.0}).level == "good"


@pytest.mark.parametrize(
    ("metrics", "health", "text"),
    [
        ({"loss": 1.05}, None, "is 1.5 times that at the start"),
        ({"loss": None}, None, "its held-out loss is not finite"),
        ({"logps/rejected_per_token": -50.5}, None, "collapsed (rejected responses at -50.500"),
        ({}, [{**ADVICE[0], "rule": "collapse", "level": "warn"}], "the distribution collapsed"),
    ],
)
def test_verdict_of_a_ruined_model_is_an_error(tmp_path, metrics, health, text):
    outcome = finished_with(tmp_path, health=health, **{"rewards/accuracies": 0.99, **metrics})
    assert (outcome.state, outcome.level) == ("finished", "error")
    assert outcome.title.startswith("Finished, but ")
    assert text in outcome.title


def test_verdict_advises_in_the_keys_of_the_method(tmp_path):
    advice = {"weaken": "lower orpo.lambda", "strengthen": "raise orpo.lambda"}
    run = {**RUN, "method": "orpo", "advice": advice}
    ruined = finished_with(tmp_path / "ruined", run=run, loss=1.05)
    assert ruined.title.endswith("Lower the learning rate or lower orpo.lambda")
    weak = finished_with(tmp_path / "weak", run=run, **{"rewards/accuracies": 0.55})
    assert "raise the learning rate or raise orpo.lambda, unless the labels" in weak.title
    older = finished_with(tmp_path / "older", loss=1.05)
    assert older.title.endswith("Lower the learning rate")


def test_verdict_below_the_ratio_reports_overtraining_only(tmp_path):
    outcome = finished_with(tmp_path, loss=1.03)  # 1.486 times ln 2
    assert outcome.level == "good"
    assert any("ended above its start (0.6931 -> 1.0300)" in line for line in outcome.details)


@pytest.mark.parametrize(("last", "reported"), [(0.52, True), (0.505, False)])
def test_verdict_reports_a_loss_that_rises_again(tmp_path, last, reported):
    rows = [eval_row(0), eval_row(100, loss=0.5), eval_row(200, loss=last)]
    details = verdict_of(tmp_path, rows).details
    assert any("lowest at step 100 (0.5000)" in line for line in details) is reported


def test_verdict_calls_small_changes_insignificant(tmp_path):
    metrics = {"loss": 0.6900, "logps/chosen_per_token": -1.06, "reference_kl": 0.0004}
    outcome = finished_with(tmp_path, **metrics, perplexity=2.88)
    lines = [str(change) for change in outcome.changes]
    assert "eval loss 0.6931 -> 0.6900, no significant change" in lines
    assert "perplexity 2.860 -> 2.880, no significant change" in lines
    assert "the policy has hardly moved from its reference" in outcome.details
    assert not any("less likely" in line for line in outcome.details)


def test_verdict_reports_a_length_bias(tmp_path):
    metrics = {"rewards/accuracies_chosen_longer": 0.9, "rewards/accuracies_chosen_shorter": 0.6}
    details = finished_with(tmp_path, **metrics).details
    assert any("0.90 where the chosen response is longer" in line for line in details)


def test_verdict_without_per_token_metrics_uses_sums(tmp_path):
    rows = [
        {"step": 0, "eval_loss": 0.7, "eval_logps/chosen": -283.0},
        {"step": 200, "eval_loss": 0.5, "eval_logps/chosen": -350.0},
    ]
    outcome = verdict_of(tmp_path, rows)
    assert "chosen logp -283.0 -> -350.0" in map(str, outcome.changes)
    assert any("less likely, by 67 nats." in line for line in outcome.details)


@pytest.mark.parametrize(
    ("last", "level", "text"),
    [
        (0.4, "good", "fell from 2.0000 to 0.4000"),
        (1.99, "warning", "did not change"),
        (2.5, "warning", "rose from 2.0000 to 2.5000"),
        (3.5, "error", "is 1.8 times that at the start"),
    ],
)
def test_verdict_of_sft_follows_the_loss(tmp_path, last, level, text):
    rows = [{"step": 0, "eval_loss": 2.0}, {"step": 9, "eval_loss": last}]
    outcome = verdict_of(tmp_path, rows, run=SFT)
    assert outcome.level == level
    assert text in outcome.title


@pytest.mark.parametrize(("margin", "level"), [(1.2, "good"), (-0.1, "warning")])
def test_verdict_of_kto_follows_the_margin(tmp_path, margin, level):
    rows = [
        {"step": 0, "eval_loss": 0.5, "eval_rewards/margins": 0.0},
        {"step": 9, "eval_loss": 0.4, "eval_rewards/margins": margin},
    ]
    assert verdict_of(tmp_path, rows, run={**RUN, "method": "kto"}).level == level


@pytest.mark.parametrize(("last", "level"), [(0.95, "note"), (0.7, "warning")])
def test_verdict_without_a_reference_compares_with_the_start(tmp_path, last, level):
    rows = [
        {"step": 0, "eval_loss": 1.0, "eval_rewards/accuracies": 0.93},
        {"step": 9, "eval_loss": 0.9, "eval_rewards/accuracies": last},
    ]
    assert verdict_of(tmp_path, rows, run={**SFT, "method": "orpo"}).level == level


ROWS = [eval_row(0), train_row(1), {"step": 2, "loss": None}]


def test_verdict_of_a_diverged_run(tmp_path):
    run = {**RUN, "status": "diverged", "why": "loss is nan at step 2"}
    outcome = verdict_of(tmp_path, ROWS, run=run)
    assert (outcome.state, outcome.title) == ("diverged", "Diverged at step 2")
    assert outcome.details == ["loss is nan at step 2", "no final model was written"]


def test_verdict_of_a_run_that_a_health_rule_stopped(tmp_path):
    stop = {**ADVICE[0], "rule": "collapse", "level": "stop", "message": "rejected at -60"}
    run = {**RUN, "status": "diverged", "why": "collapse"}
    outcome = verdict_of(tmp_path, ROWS, run=run, health=[stop])
    assert outcome.state == "stopped"
    assert outcome.title == "Stopped at step 2 by the health rule collapse"
    assert outcome.details[0] == "rejected at -60"


def test_verdict_of_a_failed_gate_names_the_perplexity(tmp_path):
    gate = {"perplexity": 812.0, "max_perplexity": 10.0, "passed": False}
    outcome = verdict_of(tmp_path, [], run={**RUN, "status": "failed", "check_sft": gate})
    assert (outcome.state, outcome.title) == ("failed", "Failed before the first step")
    assert outcome.details[0] == "check-sft failed: perplexity 812.000 is above 10.0"


def test_verdict_of_a_running_or_killed_run(tmp_path):
    outcome = verdict_of(tmp_path, ROWS, run={**RUN, "status": "running"})
    assert (outcome.state, outcome.level) == ("running", "note")
    assert outcome.title == "Not finished: still running, or killed at step 2"


def test_verdict_of_a_preempted_run(tmp_path):
    why = "preempted (SIGTERM) at step 2: saved checkpoint-2 in 3.1 s"
    outcome = verdict_of(tmp_path, ROWS, run={**RUN, "status": "preempted", "why": why})
    assert (outcome.state, outcome.level) == ("preempted", "note")
    assert outcome.title == "Preempted at step 2"
    assert outcome.details[:2] == [why, "no final model was written"]


def test_verdict_without_evaluations_has_no_changes(tmp_path):
    outcome = verdict_of(tmp_path, [train_row(1), train_row(200)])
    assert outcome.changes == []
    assert outcome.lines() == ["nothing was evaluated, since the recipe has no data.eval"]


@pytest.mark.parametrize("rows", [[], [{"step": 3}], [{"step": 0, "eval_loss": None}]])
@pytest.mark.parametrize("run", [{}, {"status": "finished"}, {**RUN, "data": [1]}])
def test_verdict_of_an_incomplete_run_folder_does_not_raise(tmp_path, rows, run):
    assert verdict_of(tmp_path, rows, run=run).title


def test_as_document_names_metrics_by_key(tmp_path):
    run = read_run(dpo_run(tmp_path))
    document = as_document(run, verdict(run))
    assert document["metrics"]["perplexity"] == {"first": 2.86, "last": 3.53}
    assert document["metrics"]["rewards/margins"] == {"first": None, "last": 1.05}
    assert document["expected"]["eval_loss"]["within"] is False


def test_is_unchanged_allows_for_sampling_error_and_tolerance():
    assert is_unchanged("rewards/accuracies", 0.5, 0.59, 100)  # two standard errors are 0.1
    assert not is_unchanged("rewards/accuracies", 0.5, 0.59, 10_000)
    assert is_unchanged("loss", 2.0, 2.01)
    assert not is_unchanged("loss", 2.0, 2.03)
