"""What is no recipe file at all, or no YAML that a recipe may hold."""
# ruff: noqa: E501 - the tables have a case a line

import os

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, added, mistakes, swapped, table, write

SYNTAX = table(
    added("tab", "\tseed: 1", "6:1", None, "a tab | indent with spaces"),
    added("tab in a section", "training:\n\tmax_steps: 1", "7:1", None, "a tab | indent with spaces"),
    added("tab after spaces", "training:\n  max_steps: 1\n\tseed: 1", "8:1", None, "a tab"),
    added("open brace", "lora: {rank: 8", "6:7", None, "this { is never closed | add the }"),
    added("open bracket", "lora: {target_modules: [q", "6:24", None, "this [ is never closed"),
    added("open quote", "logging: {run_name: 'x}", "6:21", None, "this quote is never closed"),
    added("bracket too much", "seed: ]", "6:7", None, "a value is missing"),
    added("brace too much", "lora: {rank: 8}}", "6:16", None, "does not belong to the section above"),
    added("only a comma", "lora: {,}", "6:8", None, "a value is missing"),
    added("no comma", "lora: {a: [1] b: 2}", "6:15", None, "comma or closing bracket"),
    added("two colons", "seed: a: b", "6:8", None, "a second colon | quote the value"),
    added("two colons in braces", "lora: {rank: 8: 9}", "6:15", None, "a second colon"),
    added("too deep", "training:\n  max_steps: 1\n   save_steps: 2", "8:14", None, "a second colon | indentation"),
    added("too shallow", "training:\n    max_steps: 1\n  save_steps: 2", "8:3", None, "same column"),
    added("no colon", "seed 1", "6:1", None, "this line is not `key: value` | a space after the colon"),
    added("no space", "seed:1", "6:1", None, "this line is not `key: value` | a space after the colon"),
    added("equals sign", "seed=1", "6:1", None, "this line is not `key: value`"),
    added("list among keys", "- a", "6:1", None, "does not belong to the section above"),
    added("list behind a key", "lora: - a", "6:7", None, "a list entry behind a key | new line"),
    added("text after a quote", "logging: {run_name: 'a'b}", "6:24", None, "comma or closing bracket"),
    added("text after a quote, block", "x: 'a'b", "6:7", None, "text behind the closing quote"),
    added("at sign", "x: @a", "6:4", None, "can't start with this character | quotes"),
    added("percent", "x: %a", "6:4", None, "can't start with this character | quotes"),
    added("backtick", "x: `a`", "6:4", None, "can't start with this character | quotes"),
    added("escape", 'x: "C:\\d"', "6:8", None, "no escape | single quotes"),
    added("braces unquoted", "x: {a: ${seed}}", "6:9", None, 'inside { } and [ ] | {key: "${...}"}'),
    added("brackets unquoted", "x: [${seed}]", "6:6", None, 'inside { } and [ ] | {key: "${...}"}'),
    swapped("glob", "a.jsonl", "*.jsonl", "5:17", None, "* starts a YAML alias | quotes"),
    added("second document", f"---\n{GOOD}", "6:1", None, "second document | one document"),
    added("key of 3000 letters", "k" * 3000 + ": 1", "6:1", None, "this line is not `key: value`"),
    added("YAML 2", "...\n%YAML 2.0\n---\na: 1", "7:1", None, "incompatible YAML"),
)  # fmt: skip

REFUSED = table(
    swapped("object tag", "runs/x", "!!python/object/apply:os.system ['touch x']", "1:13", None, "YAML tag !!python/object/apply:os.system | plain values"),
    swapped("name tag", "runs/x", "!!python/name:os.system", "1:13", None, "YAML tag !!python/name"),
    swapped("own tag", "runs/x", "!foo bar", "1:13", None, "YAML tag !foo | remove the tag"),
    swapped("str tag", "runs/x", "!!str 5", "1:13", None, "YAML tag !!str"),
    swapped("binary tag", "runs/x", "!!binary aGk=", "1:13", None, "YAML tag !!binary"),
    swapped("long tag", "runs/x", "!<tag:yaml.org,2002:float> 1", "1:13", None, "YAML tag !!float"),
    added("tag on a key", "!!str seed: 1", "6:1", None, "YAML tag !!str"),
    added("alias", "seed: *a", "6:7", None, "YAML alias *a | ${section.key}"),
    added("YAML anchor", "seed: &a 1", "6:7", None, "YAML anchor &a | ${section.key}"),
    added("billion laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "6:4", None, "YAML anchor &a"),
    added("brackets", "x: " + "[" * 1000, "6:43", None, "nested deeper than 40 levels"),
    added("closed brackets", "x: " + "[" * 1000 + "]" * 1000, "6:43", None, "nested deeper than 40"),
    added("braces", "x: " + "{a: " * 1000 + "1" + "}" * 1000, "6:160", None, "nested deeper than 40"),
    added("indentation", "\n".join(" " * i + "k:" for i in range(400)), "46:41", None, "nested deeper than 40"),
    added("dashes", "x:\n " + "- " * 1000 + "1", "7:80", None, "nested deeper than 40"),
    added("question marks", "? " * 1000 + "1", "6:81", None, "nested deeper than 40"),
)  # fmt: skip


@SYNTAX
def test_syntax(case, tmp_path):
    case.check(tmp_path)


@REFUSED
def test_yaml_that_a_recipe_does_not_hold(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.check(tmp_path)
    assert os.listdir() == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("content", "at", "said"),
    [
        pytest.param("", ":1:1", "the recipe is empty", id="empty"),
        pytest.param("\n \n", ":1:1", "the recipe is empty", id="blank"),
        pytest.param("# seed: 1\n", ":1:1", "the recipe is empty", id="comments"),
        pytest.param("\n- a\n", ":2:1", "a list, where a recipe is made of", id="list"),
        pytest.param("hello\n", ":1:1", "a single value, where a recipe", id="scalar"),
        pytest.param("null\n", ":1:1", "a single value, where a recipe", id="null"),
        pytest.param(b"a: 1\n# \xff\n", ":2:3", "byte 0xff is not UTF-8", id="invalid UTF-8"),
        pytest.param(GOOD.encode("utf-16"), ":1:1", "save the recipe as UTF-8", id="UTF-16"),
        pytest.param(bytes(range(256)) * 9, ":2:118", "not a text file", id="binary"),
        pytest.param("a: b\nc: \0\n", ":2:4", "character U+0000 is not allowed", id="NUL"),
        pytest.param("# \x07\n", ":1:3", "character U+0007 is not allowed", id="bell"),
        pytest.param("#" * 10_000_000, "", "more than 100 kB", id="10 MB"),
    ],
)
def test_content(content, at, said, tmp_path):
    (problem,) = mistakes(tmp_path, content)
    assert problem.place == f"{tmp_path / 'recipe.yaml'}{at}"
    assert said in str(problem)
    assert problem.hint


@pytest.mark.parametrize(
    ("path", "said"),
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
def test_path(path, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert said in problem.message
    assert problem.place
    assert problem.place.isprintable()
    assert "prefcli recipes list" in (problem.hint or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    file = write(tmp_path, GOOD)
    os.chmod(file, 0)
    with pytest.raises(RecipeError, match="Permission denied"):
        load(file)


def test_an_endless_file_is_not_read_to_its_end():
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
def test_a_recipe_all_the_same(content, tmp_path):
    assert load(write(tmp_path, content)).recipe.model.name_or_path == "some/model"
