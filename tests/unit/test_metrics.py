"""The table of metrics."""

from __future__ import annotations

import pytest

from prefcli.methods import METHODS
from prefcli.metrics import METRICS, is_eval, is_tie, metric
from prefcli.recipe.sections import EarlyStopping


def test_metrics_have_distinct_labels_and_short_titles():
    entries = METRICS.values()
    assert len({entry.label for entry in entries}) == len(METRICS)
    assert len({entry.title for entry in entries}) == len(METRICS)
    assert not [entry.label for entry in entries if " " in entry.label]
    assert max(len(entry.title) for entry in entries) <= 24
    assert all(entry.explanation for entry in entries)


def test_metrics_of_a_panel_have_distinct_legends():
    panels = {entry.panel for entry in METRICS.values() if entry.panel is not None}
    for panel in panels:
        lines = [entry.line for entry in METRICS.values() if entry.panel == panel]
        assert len(set(lines)) == len(lines)
        assert len(lines) <= 3, "there are three colours"


def test_caption_of_a_panel_names_no_option_that_a_method_lacks():
    """Check all methods: ORPO has lambda in place of beta, and a reward model has neither."""
    captions = [entry.panel.caption for entry in METRICS.values() if entry.panel is not None]
    words = {word.strip(",.;:") for caption in captions for word in (caption or "").split()}
    assert not words & {method.strength_key for method in METHODS.values()}


def test_metrics_supersede_metrics_of_the_table():
    assert {entry.superseded_by for entry in METRICS.values()} - {None} <= METRICS.keys()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_metrics_of_a_method_are_in_the_table(method):
    names = {*method.trainer.metrics, *method.hidden_metrics}
    assert names <= METRICS.keys()
    judged = {name for name in method.trainer.metrics if METRICS[name].better is not None}
    assert judged <= {*method().metrics}


def test_metrics_of_methods_follow_their_rows_and_reference():
    measured = {name: {*method().metrics} for name, method in METHODS.items()}
    assert measured["sft"] == {"mean_token_accuracy", "perplexity", "end_probability"}
    assert measured["dpo"] == measured["ipo"]
    assert measured["dpo"] - measured["kto"] == {
        "rewards/accuracies",
        "rewards/accuracies_chosen_longer",
        "rewards/accuracies_chosen_shorter",
        "rewards/margins_chosen_longer",
        "rewards/margins_chosen_shorter",
    }
    assert measured["kto"] - measured["dpo"] == {"kl"}
    assert measured["dpo"] - measured["simpo"] == {"reference_kl"}
    assert measured["orpo"] - measured["simpo"] == {"log_odds_ratio", "log_odds_chosen"}
    assert measured["reward"] == {name for name in measured["dpo"] if name.startswith("rewards/")}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("loss", 0.69314, "0.6931"),
        ("loss", -0.0, "0.0000"),
        ("loss", 1234.5, "1.23e+03"),
        ("eval_loss", 1.2e-5, "1.2e-05"),
        ("rewards/margins", 0.75, "+0.7500"),
        ("rewards/margins", -1e6, "-1.00e+06"),
        ("rewards/margins", 1e-6, "+1.0e-06"),
        ("logps/chosen", -1234.56, "-1234.6"),
        ("grad_norm", 123.0, "123"),
        ("learning_rate", 5e-7, "5.00e-07"),
        ("tokens_per_second", 10234.4, "10234"),
        ("of_another_version", 1.23456, "1.235"),
        ("loss", None, "nan"),
        ("loss", float("inf"), "+inf"),
    ],
)
def test_metric_format(key, value, text):
    assert metric(key).format(value) == text


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, -1e-300, 12345.678, 0.0])
def test_metric_format_fits_nine_characters(value):
    for entry in METRICS.values():
        if entry.digits.endswith(("3f", "4f", "e", "g")):
            assert len(entry.format(value)) <= 10


def test_metric_format_change_has_a_sign():
    assert metric("loss").format_change(0.7, 0.5) == "-0.2000"
    assert metric("rewards/margins").format_change(0.0, 0.5) == "+0.5000"


def test_is_eval_needs_the_prefix():
    assert is_eval({"step": 1, "eval_loss": 1.0})
    assert not is_eval({"step": 1, "loss": 1.0})


def test_is_tie_needs_a_margin_of_zero():
    assert is_tie({"rewards/accuracies": 0.0, "rewards/margins": 0.0}, "rewards/accuracies")
    assert not is_tie({"rewards/accuracies": 0.0, "rewards/margins": 0.1}, "rewards/accuracies")
    assert not is_tie({"rewards/margins": 0.0}, "rewards/margins")


@pytest.mark.parametrize(
    ("key", "greater"),
    [
        ("eval_loss", False),
        ("eval_perplexity", False),
        ("eval_reference_kl", False),
        ("eval_logps/rejected", False),
        ("eval_rewards/accuracies", True),
        ("eval_rewards/margins_chosen_shorter", True),
        ("eval_mean_token_accuracy", True),
        ("eval_log_odds_ratio", True),
    ],
)
def test_early_stopping_knows_the_better_direction(key, greater):
    assert EarlyStopping(metric=key).greater_is_better is greater
