"""Files that are not recipes, and YAML that a recipe must not use."""
# ruff: noqa: E501 - the tables have a case a line

import os
from pathlib import Path

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.recipe.yaml_reader import compose, compose_in_python
from tests.support.broken_recipes import GOOD, added, mistakes, swapped, table, write

ROOT = Path(__file__).parents[2]

SYNTAX = table(
    added("tab", "\tseed: 1", "6:1", None, "RCP009 | a tab"),
    added("tab in a section", "training:\n\tmax_steps: 1", "7:1", None, "RCP009"),
    added("tab after spaces", "training:\n  max_steps: 1\n\tseed: 1", "8:1", None, "RCP009"),
    added("open brace", "lora: {rank: 8", "6:7", None, "RCP009"),
    added("open bracket", "lora: {target_modules: [q", "6:24", None, "RCP009"),
    added("open quote", "logging: {run_name: 'x}", "6:21", None, "RCP009"),
    added("bracket too much", "seed: ]", "6:7", None, "RCP009"),
    added("brace too much", "lora: {rank: 8}}", "6:16", None, "RCP009"),
    added("only a comma", "lora: {,}", "6:8", None, "RCP009"),
    added("no comma", "lora: {a: [1] b: 2}", "6:15", None, "RCP009"),
    added("two colons", "seed: a: b", "6:8", None, "RCP009"),
    added("two colons in braces", "lora: {rank: 8: 9}", "6:15", None, "RCP009"),
    added("too deep", "training:\n  max_steps: 1\n   save_steps: 2", "8:14", None, "RCP009"),
    added("too shallow", "training:\n    max_steps: 1\n  save_steps: 2", "8:3", None, "RCP009"),
    added("no colon", "seed 1", "6:1", None, "RCP009 | this line is not `key: value`"),
    added("no space", "seed:1", "6:1", None, "RCP009 | this line is not `key: value`"),
    added("equals sign", "seed=1", "6:1", None, "RCP009 | this line is not `key: value`"),
    added("list among keys", "- a", "6:1", None, "RCP009"),
    added("list behind a key", "lora: - a", "6:7", None, "RCP009"),
    added("text after a quote", "logging: {run_name: 'a'b}", "6:24", None, "RCP009"),
    added("text after a quote, block", "x: 'a'b", "6:7", None, "RCP009"),
    added("at sign", "x: @a", "6:4", None, "RCP009"),
    added("percent", "x: %a", "6:4", None, "RCP009"),
    added("backtick", "x: `a`", "6:4", None, "RCP009"),
    added("escape", 'x: "C:\\d"', "6:8", None, "RCP009"),
    added("braces unquoted", "x: {a: ${seed}}", "6:9", None, "RCP009"),
    added("brackets unquoted", "x: [${seed}]", "6:6", None, "RCP009"),
    swapped("glob", "a.jsonl", "*.jsonl", "5:17", None, "RCP009"),
    added("second document", f"---\n{GOOD}", "6:1", None, "RCP010 | second document"),
    added("key of 3000 letters", "k" * 3000 + ": 1", "6:1", None, "RCP009 | this line is not `key: value`"),
    added("YAML 2", "...\n%YAML 2.0\n---\na: 1", "7:1", None, "RCP009"),
)  # fmt: skip

REFUSED = table(
    swapped("object tag", "runs/x", "!!python/object/apply:os.system ['touch x']", "1:13", None, "RCP010"),
    swapped("name tag", "runs/x", "!!python/name:os.system", "1:13", None, "RCP010"),
    swapped("own tag", "runs/x", "!foo bar", "1:13", None, "RCP010"),
    swapped("str tag", "runs/x", "!!str 5", "1:13", None, "RCP010"),
    swapped("binary tag", "runs/x", "!!binary aGk=", "1:13", None, "RCP010"),
    swapped("long tag", "runs/x", "!<tag:yaml.org,2002:float> 1", "1:13", None, "RCP010"),
    added("tag on a key", "!!str seed: 1", "6:1", None, "RCP010"),
    added("alias", "seed: *a", "6:7", None, "RCP010"),
    added("YAML anchor", "seed: &a 1", "6:7", None, "RCP010"),
    added("billion laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "6:4", None, "RCP010"),
    added("brackets", "x: " + "[" * 1000, "6:43", None, "RCP010"),
    added("closed brackets", "x: " + "[" * 1000 + "]" * 1000, "6:43", None, "RCP010"),
    added("braces", "x: " + "{a: " * 1000 + "1" + "}" * 1000, "6:160", None, "RCP010"),
    added("indentation", "\n".join(" " * i + "k:" for i in range(400)), "46:41", None, "RCP010"),
    added("dashes", "x:\n " + "- " * 1000 + "1", "7:80", None, "RCP010"),
    added("question marks", "? " * 1000 + "1", "6:81", None, "RCP010"),
)  # fmt: skip


@SYNTAX
def test_parse_syntax_error_is_located(case, tmp_path):
    case.check(tmp_path)


@REFUSED
def test_parse_unsupported_feature_is_located(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.check(tmp_path)
    assert os.listdir() == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("content", "at", "report"),
    [
        pytest.param("", ":1:1", "the recipe is empty", id="empty"),
        pytest.param("\n \n", ":1:1", "the recipe is empty", id="blank"),
        pytest.param("# seed: 1\n", ":1:1", "the recipe is empty", id="comments"),
        pytest.param("\n- a\n", ":2:1", "a list instead of", id="list"),
        pytest.param("hello\n", ":1:1", "a single value instead of", id="scalar"),
        pytest.param("null\n", ":1:1", "a single value instead of", id="null"),
        pytest.param(b"a: 1\n# \xff\n", ":2:3", "byte 0xff is not UTF-8", id="invalid UTF-8"),
        pytest.param(GOOD.encode("utf-16"), ":1:1", "save the recipe as UTF-8", id="UTF-16"),
        pytest.param(bytes(range(256)) * 9, ":2:118", "not a text file", id="binary"),
        pytest.param("a: b\nc: \0\n", ":2:4", "character U+0000 is not allowed", id="NUL"),
        pytest.param("# \x07\n", ":1:3", "character U+0007 is not allowed", id="bell"),
        pytest.param("#" * 10_000_000, "", "more than 100 kB", id="10 MB"),
    ],
)
def test_read_text_that_is_not_a_recipe_is_an_error(content, at, report, tmp_path):
    (problem,) = mistakes(tmp_path, content)
    assert problem.place == f"{tmp_path / 'recipe.yaml'}{at}"
    assert problem.code == "RCP011"
    assert report in str(problem)
    assert problem.hint


@pytest.mark.parametrize(
    ("path", "report"),
    [
        (".", "a folder"),
        ("nope.yaml", "no such file"),
        ("", "no such file"),
        ("a\0b", "null byte"),
        ("recipe.yaml/x", "Not a directory"),
        ("x" * 5000, "name too long"),
        ("\udc80.yaml", "no such file"),
        ("a\n\x1b[31m.yaml", "no such file"),
    ],
)
def test_read_text_of_invalid_path_is_an_error(path, report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert report in problem.message
    assert problem.place
    assert problem.place.isprintable()
    assert "prefcli recipes list" in (problem.hint or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_read_text_of_unreadable_file_is_an_error(tmp_path):
    file = write(tmp_path, GOOD)
    os.chmod(file, 0)
    with pytest.raises(RecipeError, match="Permission denied"):
        load(file)


def test_read_text_of_endless_file_stops():
    with pytest.raises(RecipeError, match="more than 100 kB"):
        load("/dev/zero")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf" + GOOD.encode(), id="byte order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="carriage returns"),
        pytest.param(f"---\n{GOOD}...\n", id="document marks"),
        pytest.param(f"# comment\n\n{GOOD}", id="comment"),
        pytest.param(GOOD.replace("runs/x", "runs/größe-😀"), id="any language"),
        pytest.param(GOOD + "#" * 99_000, id="99 kB"),
    ],
)
def test_load_other_encodings_and_line_ends(content, tmp_path):
    assert load(write(tmp_path, content)).recipe.model.name_or_path == "some/model"


SCALARS = (
    "a: {b: [1, 'ü ${x}', it''s], c: \"\\n\"}\nd:\n- e: |\n    text\n  f:\n- # comment\n  - ~\n"
)


def _nodes(node) -> list:
    """Tags, values, styles and places of a node and everything in it."""
    start = (node.start_mark.line, node.start_mark.column)
    if not isinstance(node.value, list):
        return [node.tag, node.value, node.style or None, start]
    pairs = [entry if isinstance(entry, tuple) else (entry,) for entry in node.value]
    return [node.tag, start, *(_nodes(part) for pair in pairs for part in pair)]


@pytest.mark.parametrize(
    "text",
    [SCALARS, GOOD, *(p.read_text("utf-8") for p in sorted(ROOT.glob("recipes/**/*.yaml")))],
    ids=lambda text: text[:30],
)
def test_compose_with_and_without_libyaml_agree(text):
    assert _nodes(compose(text, "r.yaml")) == _nodes(compose_in_python(text, "r.yaml"))
