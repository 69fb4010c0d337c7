"""An access token is refused wherever it comes from, and appears in no message."""
# ruff: noqa: E501 - the tables have a case a line

import pytest

from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, mistakes, write

TOKEN = "hf_" + "aB3" * 11
SECRET = TOKEN[3:13]


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse-battery")


def put(text: str) -> str:
    return GOOD.replace("runs/x", text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param(put(TOKEN), "output_dir", id="value"),
        pytest.param(put(f"https://user:{TOKEN}@host"), "output_dir", id="inside a value"),
        pytest.param(put(f"x_{TOKEN}"), "output_dir", id="behind an underscore"),
        pytest.param(put("sk-" + "aB3" * 11), "output_dir", id="another kind"),
        pytest.param(put("AKIAIOSFODNN7EXAMPLE"), "output_dir", id="a cloud's"),
        pytest.param(put("x-correct-horse-battery"), "output_dir", id="a password of the environment"),
        pytest.param(put("${oc.env:MLFLOW_TRACKING_PASSWORD}"), "output_dir", id="the same, by its name"),
        pytest.param(GOOD.replace("some/model", f"https://user:{TOKEN}@host/model"), "model.name_or_path", id="address"),
        pytest.param(GOOD.replace("a.jsonl", "'https://user:word@host/a.jsonl'"), "data.train.path", id="password in an address"),
        pytest.param(GOOD.replace("a.jsonl", "'https://host/a.jsonl?token=word'"), "data.train.path", id="query"),
        pytest.param(f"{GOOD}logging: {{report_to: [wandb], run_name: 'key={'0123456789' * 4}'}}\n", "logging.run_name", id="run name"),
        pytest.param(f"{GOOD}seed: {TOKEN}\n", "seed", id="where a number is wanted"),
        pytest.param(f"{GOOD}zzz: {TOKEN}\n", "zzz", id="below an unknown key"),
        pytest.param(f"{GOOD}lora: {{rank: {{a: {TOKEN}}}}}\n", "lora.rank.a", id="in a section"),
        pytest.param(f"{GOOD}lora: {{target_modules: [{TOKEN}]}}\n", "lora.target_modules[0]", id="in a list"),
        pytest.param(put("${oc.env:TOKEN}"), "output_dir", id="environment"),
        pytest.param(put("a/${oc.env:TOKEN}/b"), "output_dir", id="environment, inside"),
        pytest.param(f"{GOOD}seed: ${{oc.env:TOKEN}}\n", "seed", id="environment, number"),
        pytest.param(put(f"${{oc.env:NOPE,{TOKEN}}}"), "output_dir", id="default"),
        pytest.param(put("hf_${seed}") + f"seed: {'7' * 20}\n", "output_dir", id="put together"),
    ],
)  # fmt: skip
def test_in_the_recipe(text, path, tmp_path):
    problems = mistakes(tmp_path, text)
    assert [p.path for p in problems if "looks like an access token" in p.message] == [path]
    assert all("hf auth login" in (p.hint or "") for p in problems if p.path == path)
    hidden(problems)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{GOOD}{TOKEN}: 1\n", id="key"),
        pytest.param(GOOD.replace("a.jsonl", f"a, columns: {{{TOKEN}: 1}}"), id="column"),
        pytest.param(put(f"!{TOKEN} x"), id="tag"),
        pytest.param(put(f"*{TOKEN}"), id="alias"),
        pytest.param(put("${${oc.env:TOKEN}}"), id="name of a key"),
        pytest.param(put("${oc.env:${oc.env:TOKEN}}"), id="name of a variable"),
        pytest.param(f"{GOOD}a: b: {TOKEN}\n", id="syntax"),
        pytest.param(put(TOKEN) + f"output_dir: {TOKEN}\n", id="twice"),
        pytest.param(put("${model}").replace("some/model", "'${oc.env:TOKEN}'"), id="copied section"),
    ],
)  # fmt: skip
def test_in_no_message(text, tmp_path):
    hidden(mistakes(tmp_path, text))


@pytest.mark.parametrize("override", [f"output_dir={TOKEN}", f"{TOKEN}=1", TOKEN, f"seed=[{TOKEN}"])
def test_in_an_override(override, tmp_path):
    problems = mistakes(tmp_path, GOOD, override)
    assert [p.place for p in problems] == ["override on the command line"]
    hidden(problems)


def test_through_an_override(tmp_path):
    (problem,) = problems = mistakes(tmp_path, GOOD, "seed=${oc.env:TOKEN}")
    assert problem.place == "override 'seed=${oc.env:TOKEN}'"
    hidden(problems)


def hidden(problems):
    for problem in problems:
        assert not any(w in str(problem) for w in ("horse", ":word", "=word", "0123456789"))
        assert SECRET not in str(problem)
        assert SECRET not in str(problem.as_dict())


@pytest.mark.parametrize("text", ["risk-averse-and-very-long-name", "hf_short", "half_" + "a" * 30])
def test_a_name_is_no_token(text, tmp_path):
    assert load(write(tmp_path, put(text))).recipe.output_dir == text
