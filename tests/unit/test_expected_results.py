"""expected: valid and invalid sections, and the comparison with a run."""
# ruff: noqa: E501 - the table has a case a line

from __future__ import annotations

import pytest

from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.sections import ExpectedResults
from tests.support.broken_recipes import GOOD, Case, added, given, table, write

EVAL = GOOD + "  eval: {path: b.jsonl}\n"


def text(expected: str) -> str:
    return f"{EVAL}expected: {expected}\n"


def wrong(id: str, expected: str, column: int, path: str, report: str) -> Case:
    """The expected section is line 7 of the recipe."""
    return Case(id, text(expected), f"7:{column}", path, report)


WRONG = table(
    wrong("typo", "{source: s, metrics: {eval_los: [0, 1]}}", 43, "expected.metrics.eval_los", "RCP031 | not measured by an evaluation of dpo; did you mean eval_loss?"),
    wrong("typo behind a slash", "{source: s, metrics: {eval_rewards/margin: [0, 1]}}", 54, "expected.metrics.eval_rewards/margin", "RCP031 | did you mean eval_rewards/margins?"),
    wrong("of training", "{source: s, metrics: {loss: [0, 1]}}", 39, "expected.metrics.loss", "RCP031 | did you mean eval_loss?"),
    wrong("of another method", "{source: s, metrics: {eval_kl: [0, 1]}}", 42, "expected.metrics.eval_kl", "RCP031"),
    wrong("nothing like it", "{source: s, metrics: {bleu: [0, 1]}}", 39, "expected.metrics.bleu", "RCP031"),
    wrong("upside down", "{source: s, metrics: {eval_loss: [0.5, 0.4]}}", 44, "expected.metrics.eval_loss", "RCP016"),
    wrong("one end", "{source: s, metrics: {eval_loss: [0.5]}}", 44, "expected.metrics.eval_loss", "RCP016"),
    wrong("three ends", "{source: s, metrics: {eval_loss: [1, 2, 3]}}", 44, "expected.metrics.eval_loss", "RCP016"),
    wrong("a number", "{source: s, metrics: {eval_loss: 0.5}}", 44, "expected.metrics.eval_loss", "RCP004 | 0.5 is not a list"),
    wrong("words", "{source: s, metrics: {eval_loss: [low, 1]}}", 45, "expected.metrics.eval_loss[0]", "RCP004"),
    wrong("no metrics", "{source: s, metrics: {}}", 32, "expected.metrics", "RCP016"),
    wrong("no source", "{metrics: {eval_loss: [0, 1]}}", 1, "expected.source", "RCP003 | is missing | write source: URL"),
    wrong("empty source", "{source: '', metrics: {eval_loss: [0, 1]}}", 20, "expected.source", "RCP007 | the text is empty"),
    wrong("another method", "{source: s, method: kto, metrics: {eval_kl: [0, 1]}}", 31, "expected.method", "RCP016"),
    wrong("unknown key", "{source: s, metric: {}, metrics: {eval_loss: [0, 1]}}", 23, "expected.metric", "RCP001 | no such key | did you mean metrics?"),
)  # fmt: skip

UNREAD = table(
    added("no eval", "expected: {source: s, metrics: {eval_loss: [0, 1]}}", "6:11", "expected", "RCP016"),
    given("no eval, given", 'expected={source: s, metrics: {eval_loss: [0, 1]}}', "expected", "RCP016"),
)  # fmt: skip


@WRONG
def test_expected_with_a_mistake_is_located(case, tmp_path):
    case.check(tmp_path)


@UNREAD
def test_expected_without_data_eval_is_an_error(case, tmp_path):
    case.check(tmp_path)


def test_expected_with_several_methods_needs_one(tmp_path):
    several = text("{source: s, metrics: {eval_loss: [0, 1]}}").replace(
        "dpo: {}", "dpo: {}\nkto: {}"
    )
    with pytest.raises(
        Exception, match="expected needs a method, since the recipe has several: dpo, kto"
    ):
        load(write(tmp_path, several))
    assert load(write(tmp_path, several), ["expected.method=kto"]).recipe.expected.method == "kto"


def test_expected_interval_can_be_overridden(tmp_path):
    path = write(tmp_path, text("{source: s, metrics: {eval_loss: [0, 1]}}"))
    recipe = load(path, ["expected.metrics.eval_rewards/accuracies=[0.7, 0.8]"]).recipe
    assert recipe.expected.metrics == {"eval_loss": [0, 1], "eval_rewards/accuracies": [0.7, 0.8]}


@pytest.mark.parametrize("name", METHODS)
def test_expected_accepts_every_metric_of_a_method(name, tmp_path):
    metrics = ", ".join(f"eval_{m}: [-1, 1]" for m in ("loss", *METHODS[name]().metrics))
    expected = f"{{source: s, method: {name}, metrics: {{{metrics}}}}}"
    recipe = text(expected).replace("dpo: {}", f"{name}: {{}}")
    load(write(tmp_path, f"{recipe}judge: {{function: {{name: 'judge.py:score'}}}}\n"))


EXPECTED = ExpectedResults(
    source="some/repository,\n  results.json",
    method="dpo",
    metrics={"eval_loss": [0.4868, 0.5083], "eval_rewards/accuracies": [0.747, 0.785]},
)


def test_compare_reports_values_inside_and_outside():
    compared, report = EXPECTED.compare(
        "dpo", {"eval_loss": 0.497, "eval_rewards/accuracies": 0.7, "eval_runtime": 3.0}
    )
    assert {name: compared.as_dict() for name, compared in compared.items()} == {
        "eval_loss": {"value": 0.497, "low": 0.4868, "high": 0.5083, "within": True},
        "eval_rewards/accuracies": {"value": 0.7, "low": 0.747, "high": 0.785, "within": False},
    }
    assert report == [
        "expected: eval_loss 0.497 within 0.4868 to 0.5083",
        "expected: eval_rewards/accuracies 0.7 is outside 0.747 to 0.785 "
        "(some/repository, results.json)",
    ]


def test_compare_bounds_are_inclusive():
    for end in (0.4868, 0.5083):
        compared, _ = EXPECTED.compare("dpo", {"eval_loss": end})
        assert compared["eval_loss"].within
    compared, _ = EXPECTED.compare("dpo", {"eval_loss": 0.50831})
    assert not compared["eval_loss"].within


def test_compare_run_of_another_method_is_skipped():
    assert EXPECTED.compare("ipo", {"eval_loss": 0.497}) == (
        {},
        ["expected: not compared, since the metrics are for dpo"],
    )


def test_compare_missing_metric_is_reported():
    compared, report = EXPECTED.compare("dpo", {"eval_loss": 0.497})
    assert [*compared] == ["eval_loss"]
    assert report[1] == "expected: eval_rewards/accuracies was not measured"
