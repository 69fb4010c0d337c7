"""${...}: what resolves to what, and what can't."""
# ruff: noqa: E501 - the tables have a case a line

import warnings

import pytest

from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, added, mistakes, swapped, table, write

WRONG = table(
    swapped("self", "runs/x", "${output_dir}", "1:13", "output_dir", "RCP012 | it refers to itself"),
    swapped("parent", "some/model", "'${model}'", "2:23", "model.name_or_path", "RCP012"),
    added("own section", "lora: ${lora}", "6:7", "lora", "RCP012"),
    swapped("missing key", "runs/x", "${nope.x}", "1:13", "output_dir", "RCP012"),
    swapped("a default", "runs/x", "a${seed}", "1:13", "output_dir", "RCP012"),
    swapped("a list's entry", "runs/x", "${data.train[0].path}", "1:13", "output_dir", "RCP012"),
    swapped("above the top", "runs/x", "${..x}", "1:13", "output_dir", "RCP012"),
    swapped("missing variable", "runs/x", "${oc.env:NOPE}", "1:13", "output_dir", "RCP012 | export NOPE"),
    swapped("no variable", "runs/x", "${oc.env:}", "1:13", "output_dir", "RCP012"),
    swapped("recipe_dir with a value", "runs/x", "${recipe_dir:a}", "1:13", "output_dir", "RCP012"),
    swapped("unknown function", "runs/x", "${eval:1}", "1:13", "output_dir", "RCP012"),
    swapped("function of OmegaConf", "runs/x", "${oc.decode:x}", "1:13", "output_dir", "RCP012"),
    swapped("open", "runs/x", "a${", "1:13", "output_dir", "RCP012"),
    swapped("open with a name", "runs/x", "${seed", "1:13", "output_dir", "RCP012"),
    swapped("empty", "runs/x", "a/${}", "1:13", "output_dir", "RCP012"),
    swapped("two words", "runs/x", "${a b}", "1:13", "output_dir", "RCP012"),
    swapped("a thousand braces", "runs/x", "${" * 900, "1:13", "output_dir", "RCP012"),
    swapped("long text", "runs/x", "${x}" * 600, "1:13", "output_dir", "RCP012"),
    swapped("to be filled in", "runs/x", "???", "1:13", "output_dir", "RCP012 | output_dir=..."),
    swapped("a section for text", "runs/x", "${model}", "1:13", "output_dir", "RCP004 | {'name_or_path': 'some/model'} is not text"),
    swapped("text for a number", "dpo: {}", "dpo: {beta: '${output_dir}'}", "3:13", "dpo.beta", "RCP004"),
)  # fmt: skip


@WRONG
def test_resolve_invalid_interpolation_is_located(case, tmp_path):
    case.check(tmp_path)


def read(tmp_path, text, *overrides):
    return load(write(tmp_path, text), overrides).recipe


def test_resolve_values_that_refer_to_each_other_is_an_error(tmp_path):
    text = GOOD.replace("runs/x", "${seed}") + "seed: ${output_dir}\n"
    problems = mistakes(tmp_path, text)
    assert [p.path for p in problems] == ["output_dir", "seed"]
    assert {p.code for p in problems} == {"RCP012"}


def chain(length: int, link: str) -> str:
    """Names that refer each to the next; the last is a word."""
    words = [f'"{link.replace("NEXT", str(i + 1))}"' for i in range(length)]
    return f"{GOOD}lora: {{target_modules: [{', '.join(words)}, q]}}\n"


def test_resolve_chain_of_references(tmp_path):
    text = chain(8, "${lora.target_modules.NEXT}")
    assert read(tmp_path, text).lora.target_modules == ["q"] * 9


def test_resolve_long_chain_is_an_error(tmp_path):
    problems = mistakes(tmp_path, chain(99, "${lora.target_modules.NEXT}"))
    assert {p.code for p in problems} == {"RCP012"}


def test_resolve_more_than_a_hundred_is_an_error(tmp_path):
    problems = mistakes(tmp_path, chain(150, "${lora.target_modules.NEXT}"))
    assert any("at most 100" in p.message for p in problems)


@pytest.mark.parametrize("times", [2, 40])
def test_resolve_doubling_text_is_refused_quickly(times, tmp_path):
    problems = mistakes(tmp_path, chain(40, "${lora.target_modules.NEXT}" * times))
    assert problems


def test_resolve_doubling_sections_is_refused_quickly(tmp_path):
    lines = [f'k{i}: ["${{k{i + 1}}}", "${{k{i + 1}}}", "${{k{i + 1}}}"]' for i in range(25)]
    problems = mistakes(tmp_path, GOOD + "\n".join(reversed(lines)) + "\nk25: [x, x, x]\n")
    assert any("too large" in p.message or "more than ten" in p.message for p in problems)


def test_resolve_value_that_depends_on_a_mistake_says_so(tmp_path):
    text = GOOD.replace("runs/x", "${oc.env:NOPE}") + "logging: {run_name: '${output_dir}'}\n"
    first, second = mistakes(tmp_path, text)
    assert "NOPE is not set" in first.message
    assert second.path == "logging.run_name"
    assert "a value that it refers to can't be resolved" in second.message


def test_resolve_keys_and_sections(tmp_path):
    text = GOOD.replace("runs/x", "runs/${model.name_or_path}/${.data.max_length}")
    text = text.replace("data:", "data:\n  max_length: 512\n  eval: ${data.train}")
    recipe = read(tmp_path, text)
    assert recipe.output_dir == "runs/some/model/512"
    assert recipe.data.eval == recipe.data.train


def test_resolve_key_with_dots_is_not_a_path(tmp_path):
    text = GOOD.replace("a.jsonl", "a, columns: {a.b: '${model.name_or_path}'}")
    assert read(tmp_path, text).data.train[0].columns == {"a.b": "some/model"}


def test_resolve_recipe_dir_is_the_folder_of_the_file(tmp_path):
    text = GOOD.replace("a.jsonl", "'${recipe_dir:}/a.jsonl'")
    assert read(tmp_path, text).data.train[0].path == f"{tmp_path}/a.jsonl"


def test_resolve_empty_default_is_empty_text(tmp_path):
    text = GOOD.replace("runs/x", "'a${oc.env:NOPE,}'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, text).output_dir == "a"


def test_resolve_escaped_interpolation_stays_text(tmp_path):
    assert read(tmp_path, GOOD.replace("runs/x", r"a\${b}")).output_dir == "a${b}"


def test_resolve_environment_variable_takes_the_type_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB", "42")
    monkeypatch.setenv("RATE", "5e-7")
    monkeypatch.setenv("DORA", "true")
    text = GOOD.replace("runs/x", "${oc.env:JOB}") + (
        "seed: ${oc.env:JOB}\nlora: {use_dora: '${oc.env:DORA}'}\n"
        "training: {learning_rate: '${oc.env:RATE}', max_steps: '${oc.env:NOPE,7}'}\n"
    )
    recipe = read(tmp_path, text)
    assert (recipe.output_dir, recipe.seed, recipe.lora.use_dora) == ("42", 42, True)
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (5e-7, 7)


@pytest.mark.parametrize("value", ["a: b: c", "[" * 250, "*x", "${oc.env:HOME}", "!x y", "# c"])
def test_resolve_environment_variable_for_text_stays_text(value, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", value)
    assert read(tmp_path, GOOD.replace("runs/x", "${oc.env:OUT}")).output_dir == value


@pytest.mark.parametrize("value", ["x", "{a: 1}", "", "9" * 5000, "[" * 250, ".nan"])
def test_resolve_environment_variable_of_wrong_type_is_an_error(value, tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", value)
    (problem,) = mistakes(tmp_path, f"{GOOD}seed: ${{oc.env:SEED}}\n")
    assert problem.path == "seed"
    assert "is not a whole number" in problem.message
