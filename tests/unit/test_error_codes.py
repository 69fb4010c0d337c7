"""Error codes: each one in the product is explained, and each explanation is current."""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.error_codes import ERROR_CODES
from prefcli.error_codes.data import DATA_CODES
from prefcli.error_codes.environment import ENVIRONMENT_CODES
from prefcli.error_codes.judge import JUDGE_CODES
from prefcli.error_codes.markdown import error_reference
from prefcli.error_codes.model import MODEL_CODES
from prefcli.error_codes.recipe import RECIPE_CODES
from prefcli.error_codes.run import RUN_CODES
from prefcli.error_codes.training import TRAINING_CODES

ROOT = Path(__file__).parents[2]
GROUPS = {
    "RCP": RECIPE_CODES,
    "DAT": DATA_CODES,
    "MDL": MODEL_CODES,
    "ENV": ENVIRONMENT_CODES,
    "RUN": RUN_CODES,
    "TRN": TRAINING_CODES,
    "JDG": JUDGE_CODES,
}
CODE = re.compile(rf"({'|'.join(GROUPS)})[0-9]{{3}}")


@functools.cache
def codes_in_product() -> dict[str, list[str]]:
    """Every literal error code outside prefcli/error_codes, with the places that use it."""
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "prefcli").rglob("*.py")):
        if path.parent.name == "error_codes":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and CODE.fullmatch(str(node.value)):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                places.setdefault(str(node.value), []).append(place)
    return places


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("prefix", GROUPS)
def test_codes_of_a_group_are_unique_and_have_its_prefix(prefix):
    codes = [entry.code for entry in GROUPS[prefix]]
    assert all(code.startswith(prefix) and CODE.fullmatch(code) for code in codes)
    assert [code for code, count in Counter(codes).items() if count > 1] == []


def test_names_are_unique_slugs():
    names = [entry.name for entry in ERROR_CODES.values()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@pytest.mark.parametrize("entry", ERROR_CODES.values(), ids=lambda entry: entry.code)
def test_entry_is_complete(entry):
    assert entry.example.strip()
    assert entry.meaning.endswith(".")
    assert entry.cure.endswith(".")


def test_every_code_in_the_product_has_an_entry():
    unknown = {code: at for code, at in codes_in_product().items() if code not in ERROR_CODES}
    assert not unknown, unknown


def test_every_entry_is_used():
    unused = sorted(ERROR_CODES.keys() - codes_in_product().keys())
    assert not unused, unused


def test_docs_page_is_current():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert page == error_reference(ERROR_CODES.values()), "run scripts/make_reference_docs.py"


def test_explain_prints_meaning_example_and_cure(monkeypatch, capsys):
    assert run(monkeypatch, "explain", "rcp001") == 0
    out = capsys.readouterr().out
    entry = ERROR_CODES["RCP001"]
    assert out.startswith("RCP001 unknown-key\n")
    assert entry.meaning in out
    assert f"Cure: {entry.cure}" in out


def test_explain_without_code_lists_all(monkeypatch, capsys):
    assert run(monkeypatch, "explain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ERROR_CODES)


def test_explain_json_has_every_field(monkeypatch, capsys):
    assert run(monkeypatch, "explain", "RCP001", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ERROR_CODES["RCP001"]._asdict()
    assert run(monkeypatch, "explain", "--json") == 0
    assert [entry["code"] for entry in json.loads(capsys.readouterr().out)] == list(ERROR_CODES)


def test_explain_markdown_is_the_docs_page(monkeypatch, capsys):
    assert run(monkeypatch, "explain", "--markdown") == 0
    assert capsys.readouterr().out == error_reference(ERROR_CODES.values())


def test_explain_unknown_code_is_an_error(monkeypatch, capsys):
    assert run(monkeypatch, "explain", "RCP999", "--json") == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["code"] == "RCP028"
