"""Whatever is written, load returns or says where the mistake is: no other error, and soon."""

from datetime import timedelta

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefcli.errors import RecipeError
from prefcli.formats import FORMATS, RowError, detect
from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, write

# The deadline is far above what a slow machine needs; it catches what would take minutes.
quick = settings(
    max_examples=100,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)

FULL = {
    "output_dir": "runs/${model.name_or_path}",
    "seed": 7,
    "model": {"name_or_path": "some/model", "dtype": "bfloat16"},
    "lora": {"rank": 8, "target_modules": ["q_proj", "v_proj"]},
    "dpo": {
        "beta": 0.1,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.5],
        "ld_alpha": 0.5,
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.5,
    },
    "kto": {"beta": 0.2, "desirable_weight": "auto", "undesirable_weight": 1.5},
    "simpo": {"beta": 2.5, "gamma": 1.0, "cpo_alpha": 0.1},
    "data": {
        "train": [{"path": "a.jsonl", "columns": {"prompt": "q"}}, {"path": "b", "fraction": 0.5}],
        "eval": {"path": "c.jsonl"},
    },
    "training": {"learning_rate": 5e-7, "warmup_ratio": 0.1, "eval_steps": 10},
    "logging": {"report_to": ["wandb"], "run_name": "${oc.env:HOME,x}"},
}

words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["${seed}", "${dpo}", "${output_dir}", "${", "???", "no", "5e-7", "all-linear", "sft", "<<"]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def sections(node):
    """Every section and list of a recipe."""
    yield node
    for inner in node.values() if isinstance(node, dict) else node:
        if isinstance(inner, dict | list):
            yield from sections(inner)


@st.composite
def mutated(draw):
    """FULL with some keys gone, renamed or set to anything."""
    recipe = yaml.safe_load(yaml.safe_dump(FULL))
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.sampled_from([s for s in sections(recipe) if s]))
        key = draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        action = draw(st.sampled_from(["delete", "rename", "replace"]))
        value = where.pop(key) if action != "replace" else where[key]
        if action == "replace":
            where[key] = draw(values)
        elif action == "rename" and isinstance(where, dict):
            where[draw(words)] = value
    return recipe


def survives(folder, text, *overrides):
    try:
        load(write(folder, text), overrides)
    except RecipeError as error:
        problems = error.problems
    else:
        return
    assert problems
    for problem in problems:
        assert problem.place
        assert problem.message
        assert str(problem).encode()
        assert problem.path is None or problem.path.isprintable()


def test_full_recipe_is_valid(tmp_path):
    assert load(write(tmp_path, yaml.safe_dump(FULL))).recipe.output_dir == "runs/some/model"


@quick
@given(recipe=mutated())
def test_load_mutated_recipe_is_valid_or_a_recipe_error(tmp_path, recipe):
    survives(tmp_path, yaml.safe_dump(recipe, allow_unicode=True))


@quick
@given(st.lists(st.tuples(st.integers(0, 40), st.text(max_size=30)), min_size=1, max_size=4))
def test_load_injected_lines_are_valid_or_a_recipe_error(tmp_path, lines):
    text = yaml.safe_dump(FULL).splitlines()
    for at, line in lines:
        text.insert(at, line)
    survives(tmp_path, "\n".join(text))


@quick
@given(st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=8)), min_size=1))
def test_load_injected_bytes_are_valid_or_a_recipe_error(tmp_path, fragments):
    data = bytearray(yaml.safe_dump(FULL).encode())
    for at, piece in fragments:
        data[at : at + len(piece)] = piece
    survives(tmp_path, bytes(data))


@quick
@given(st.one_of(st.text(), st.text("{}[]:,-?*&!|>'\"%@`# \n\tab$0.", max_size=80)))
def test_load_any_text_is_valid_or_a_recipe_error(tmp_path, text):
    survives(tmp_path, text)


@quick
@given(st.lists(st.text("${}.:,[]'\\ seoc.nvdata", max_size=40), min_size=1, max_size=4))
def test_load_any_interpolation_is_valid_or_a_recipe_error(tmp_path, words):
    lines = [f"k{i}: {yaml.safe_dump('${' + word)}" for i, word in enumerate(words)]
    survives(tmp_path, GOOD + "\n".join(lines))


@quick
@given(
    st.lists(
        st.one_of(
            st.text(),
            st.builds(
                "{}={}".format,
                st.lists(st.sampled_from([*FULL, "path", "[0]", "0", "beta", "x"]), max_size=4).map(
                    ".".join
                ),
                st.one_of(words, values.map(lambda v: yaml.safe_dump(v, default_flow_style=True))),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_load_any_override_is_valid_or_a_recipe_error(tmp_path, overrides):
    survives(tmp_path, yaml.safe_dump(FULL), *overrides)


turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "other", None, [], {}]),
        "from": st.sampled_from(["human", "gpt", 3]),
        "content": st.one_of(st.text(max_size=5), st.none(), st.lists(st.none(), max_size=1)),
        "value": st.text(max_size=5),
        "tool_calls": st.lists(st.integers(), max_size=1),
    },
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
dialogue = st.lists(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "a"]), max_size=5).map("".join)
cells = st.one_of(json_values, turns, st.lists(turns, max_size=4), dialogue)
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "messages",
    "conversations",
    "text",
)
rows = st.one_of(
    st.dictionaries(st.sampled_from(COLUMNS), cells),
    st.dictionaries(st.text(max_size=8), json_values),
)


@settings(quick, max_examples=200)
@given(first=rows, row=rows)
def test_format_any_row_is_read_or_a_row_error(first, row):
    shape = detect(first)
    if shape is None:
        return
    # All rows of a source have the columns of the first; what lacks one reads as null.
    for sample in (first, {column: row.get(column) for column in first}):
        try:
            converted = shape.convert(sample)
        except RowError as error:
            row_error = error
        else:
            assert isinstance(converted, dict)
            continue
        assert row_error.actual
        assert row_error.expected
        assert len(str(row_error)) < 1000


@pytest.mark.parametrize("shape", FORMATS, ids=lambda f: f.name)
def test_format_does_not_claim_an_empty_row(shape):
    assert not shape.claims({})
