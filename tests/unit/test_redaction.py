"""Redaction of secrets in printed and saved text."""

from __future__ import annotations

import json
import sys

import pytest

from prefcli import cli
from prefcli.cli.main import refuse_secrets
from prefcli.console import document, say
from prefcli.errors import RecipeError
from prefcli.secrets import HIDDEN, clean, holds_secret, is_secret, redact

HEX = "0123456789abcdef" * 2 + "01234567"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("hf_" + "aB3" * 11, HIDDEN),
        ("sk-ant-" + "aB3" * 11, HIDDEN),
        ("ghp_" + "aB3" * 12, HIDDEN),
        ("github_pat_" + "aB3_" * 12, HIDDEN),
        ("glpat-" + "aB3" * 7, HIDDEN),
        ("AKIAIOSFODNN7EXAMPLE", HIDDEN),
        ("local-" + HEX, HIDDEN),
        ("nvapi-" + "aB3" * 10, HIDDEN),
        ("xoxb-1234567890-abcdef", HIDDEN),
        (JWT, HIDDEN),
        ("Authorization: Bearer abcdefghijklmnop0123", f"Authorization: Bearer {HIDDEN}"),
        ("GET https://user:pw@host/x failed", f"GET https://{HIDDEN}@host/x failed"),
        ("git clone https://abcdefghij0123456789@host/x", f"git clone https://{HIDDEN}@host/x"),
        ("https://h/x?a=1&token=t0p&b=2", f"https://h/x?a=1&token={HIDDEN}&b=2"),
        ("s3://b/k?X-Amz-Signature=ab12", f"s3://b/k?X-Amz-Signature={HIDDEN}"),
        (f"WANDB_API_KEY={HEX}", f"WANDB_API_KEY={HIDDEN}"),
        (f'{{"api_key": "{HEX}"}}', f'{{"api_key": "{HIDDEN}"}}'),
        ("two: hf_" + "a" * 30 + " and hf_" + "b" * 30, f"two: {HIDDEN} and {HIDDEN}"),
    ],
)
def test_redact_token_by_its_form(text, redacted):
    assert is_secret(text)
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        HEX,
        f"revision: {HEX}",
        "https://huggingface.co/org/model@main",
        "ssh://git@host/repository",
        "hf://datasets/org/pairs@main/train.parquet",
        "tokens: 12, key: value, monkey=1",
        "risk-averse-and-very-long-name-of-a-run",
        "/data/AKIAX/run",
        "eos_token: <|im_end|>",
    ],
)
def test_redact_keeps_ordinary_text(text):
    assert not is_secret(text)
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("HF_TOKEN_PATH", False),
        ("KEYBOARD", False),
        ("HOME", False),
    ],
)
def test_holds_secret_by_the_name_of_a_variable(name, expected):
    assert holds_secret(name) is expected


@pytest.fixture
def password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    return "correct-horse"


def test_redact_value_of_a_secret_variable(password, monkeypatch):
    assert redact(f"refused: {password}!") == f"refused: {HIDDEN}!"
    assert is_secret(f"x{password}x")
    monkeypatch.setenv("DB_PASSWORD", "short")
    assert redact("short") == "short"
    monkeypatch.setenv("DB_PASSWORD", "bfloat16")  # also a word of recipes: hidden, but not refused
    assert (is_secret("bfloat16"), redact("bfloat16")) == (False, HIDDEN)


def test_clean_redacts_nested_data(password):
    value = {"a": [password, 1, None], "b": ({"c": f"x {password}"},)}
    assert clean(value) == {"a": [HIDDEN, 1, None], "b": [{"c": f"x {HIDDEN}"}]}


def test_say_and_document_redact(password, capsys):
    say(f"a {password}")
    document(json.dumps({"b": password}))
    out = capsys.readouterr().out.splitlines()
    assert out == [f"a {HIDDEN}", json.dumps({"b": HIDDEN})]


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", *arguments])
    return exit_code_of(cli.main)


def exit_code_of(program, *arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        program(*arguments)
    return int(stop.value.code or 0)


def test_traceback_of_a_bug_is_redacted(password, monkeypatch, capsys):
    def fails() -> None:
        raise RuntimeError(f"https://me:{password}@host: 500")

    monkeypatch.setattr(sys, "argv", ["prefcli", "validate", "x.yaml"])
    assert exit_code_of(cli.main, fails) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1] == f"RuntimeError: https://{HIDDEN}@host: 500"


def test_error_that_quotes_a_secret_is_redacted(password, monkeypatch, capsys):
    def fails() -> None:
        raise RecipeError(f"the hub said {password}", code="ENV040")

    monkeypatch.setattr(sys, "argv", ["prefcli", "validate", "x.yaml", "--json"])
    assert exit_code_of(cli.main, fails) == 2
    out, err = capsys.readouterr()
    assert err == f"error: the hub said {HIDDEN} [ENV040]\n"
    assert json.loads(out)["problems"][0]["message"] == f"the hub said {HIDDEN}"


@pytest.mark.parametrize(
    ("arguments", "place", "path"),
    [
        (["dpo", "r.yaml", "logging.run_name=hf_" + "a" * 30], 3, "logging.run_name"),
        (["dpo", "r.yaml", "model.name_or_path=https://u:hf_x@h/m"], 3, "model.name_or_path"),
        (["dpo", "r.yaml", "data.train.path=https://h/x?token=abc"], 3, "data.train.path"),
        (["dpo", "r.yaml", f"x=wandb key={HEX}"], 3, "x"),
        (["sample", "https://u:p@h/m"], 2, None),
        (["dpo", "hf_" + "a" * 30 + "=1"], 2, None),
    ],
)
def test_refuse_secrets_names_the_argument(arguments, place, path):
    with pytest.raises(RecipeError) as caught:
        refuse_secrets(arguments)
    (problem,) = caught.value.problems
    assert problem.place == f"argument {place} of the command line"
    assert problem.path == path
    assert arguments[place - 1].partition("=")[2] not in str(problem) or path is None
    assert "hf_a" not in str(problem)


def test_command_line_with_a_token_is_refused_before_the_recipe(monkeypatch, capsys):
    token = "hf_" + "a" * 30
    assert run(monkeypatch, "dpo", "no.yaml", "--output-dir", token) == 2
    out, err = capsys.readouterr()
    assert "argument 4 of the command line: " in err
    assert "[RCP015]" in err
    assert token not in out + err
