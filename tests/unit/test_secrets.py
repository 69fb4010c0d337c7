"""Access tokens are refused in every part of a recipe and are not in any message."""
# ruff: noqa: E501 - one case per line

import pytest

from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, mistakes, write

TOKEN = "hf_" + "aB3" * 11
SECRET = TOKEN[3:13]


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse-battery")


def with_output_dir(text: str) -> str:
    return GOOD.replace("runs/x", text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param(with_output_dir(TOKEN), "output_dir", id="value"),
        pytest.param(with_output_dir(f"https://user:{TOKEN}@host"), "output_dir", id="inside a value"),
        pytest.param(with_output_dir(f"x_{TOKEN}"), "output_dir", id="behind an underscore"),
        pytest.param(with_output_dir("sk-" + "aB3" * 11), "output_dir", id="other form"),
        pytest.param(with_output_dir("AKIAIOSFODNN7EXAMPLE"), "output_dir", id="cloud key"),
        pytest.param(with_output_dir("x-correct-horse-battery"), "output_dir", id="password of a variable"),
        pytest.param(with_output_dir("${oc.env:MLFLOW_TRACKING_PASSWORD}"), "output_dir", id="interpolated password"),
        pytest.param(GOOD.replace("some/model", f"https://user:{TOKEN}@host/model"), "model.name_or_path", id="address"),
        pytest.param(GOOD.replace("a.jsonl", "'https://user:word@host/a.jsonl'"), "data.train.path", id="password in an address"),
        pytest.param(GOOD.replace("a.jsonl", "'https://host/a.jsonl?token=word'"), "data.train.path", id="query"),
        pytest.param(f"{GOOD}logging: {{report_to: [wandb], run_name: 'key={'0123456789' * 4}'}}\n", "logging.run_name", id="run name"),
        pytest.param(f"{GOOD}seed: {TOKEN}\n", "seed", id="number"),
        pytest.param(f"{GOOD}zzz: {TOKEN}\n", "zzz", id="unknown key"),
        pytest.param(f"{GOOD}lora: {{rank: {{a: {TOKEN}}}}}\n", "lora.rank.a", id="in a section"),
        pytest.param(f"{GOOD}lora: {{target_modules: [{TOKEN}]}}\n", "lora.target_modules[0]", id="in a list"),
        pytest.param(with_output_dir("${oc.env:TOKEN}"), "output_dir", id="environment"),
        pytest.param(with_output_dir("a/${oc.env:TOKEN}/b"), "output_dir", id="environment, inside"),
        pytest.param(f"{GOOD}seed: ${{oc.env:TOKEN}}\n", "seed", id="environment, number"),
        pytest.param(with_output_dir(f"${{oc.env:NOPE,{TOKEN}}}"), "output_dir", id="default"),
        pytest.param(with_output_dir("hf_${seed}") + f"seed: {'7' * 20}\n", "output_dir", id="composed"),
    ],
)  # fmt: skip
def test_recipe_with_a_token_is_refused(text, path, tmp_path):
    problems = mistakes(tmp_path, text)
    assert [p.path for p in problems if p.code == "RCP015"] == [path]
    assert_hidden(problems)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{GOOD}{TOKEN}: 1\n", id="key"),
        pytest.param(GOOD.replace("a.jsonl", f"a, columns: {{{TOKEN}: 1}}"), id="column"),
        pytest.param(with_output_dir(f"!{TOKEN} x"), id="tag"),
        pytest.param(with_output_dir(f"*{TOKEN}"), id="alias"),
        pytest.param(with_output_dir("${${oc.env:TOKEN}}"), id="name of a key"),
        pytest.param(with_output_dir("${oc.env:${oc.env:TOKEN}}"), id="name of a variable"),
        pytest.param(f"{GOOD}a: b: {TOKEN}\n", id="syntax"),
        pytest.param(with_output_dir(TOKEN) + f"output_dir: {TOKEN}\n", id="twice"),
        pytest.param(with_output_dir("${model}").replace("some/model", "'${oc.env:TOKEN}'"), id="copied section"),
    ],
)  # fmt: skip
def test_recipe_error_that_quotes_a_token_hides_it(text, tmp_path):
    assert_hidden(mistakes(tmp_path, text))


@pytest.mark.parametrize("override", [f"output_dir={TOKEN}", f"{TOKEN}=1", TOKEN, f"seed=[{TOKEN}"])
def test_override_with_a_token_is_refused(override, tmp_path):
    problems = mistakes(tmp_path, GOOD, override)
    assert [p.place for p in problems] == ["override on the command line"]
    assert_hidden(problems)


def test_override_with_an_interpolated_token_is_refused(tmp_path):
    (problem,) = problems = mistakes(tmp_path, GOOD, "seed=${oc.env:TOKEN}")
    assert problem.place == "override 'seed=${oc.env:TOKEN}'"
    assert_hidden(problems)


def assert_hidden(problems):
    for problem in problems:
        assert not any(word in str(problem) for word in ("horse", ":word", "=word", "0123456789"))
        assert SECRET not in str(problem)
        assert SECRET not in str(problem.as_dict())


@pytest.mark.parametrize("text", ["risk-averse-and-very-long-name", "hf_short", "half_" + "a" * 30])
def test_ordinary_name_is_accepted(text, tmp_path):
    assert load(write(tmp_path, with_output_dir(text))).recipe.output_dir == text
