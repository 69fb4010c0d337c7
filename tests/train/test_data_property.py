"""Any file loads, or an error says what is wrong with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefcli.data import Limits, load_split
from prefcli.errors import PrefcliError
from prefcli.recipe.sections import Source

quick = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

texts = st.one_of(
    st.text(max_size=6),
    # Halves of surrogate pairs, which JSON can contain and UTF-8 cannot.
    st.text(st.characters(categories=["Cs", "L"]), max_size=3),
    st.sampled_from(["", " ", "q", "\u2028", "</s>", "\n\nHuman: a\n\nAssistant: b", "x" * 99]),
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "boss", None, 1])
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": roles, "content": texts}),
        st.fixed_dictionaries({"from": roles, "value": texts}),
        st.fixed_dictionaries({"role": roles, "content": st.just([{"type": "text"}])}),
    ),
    max_size=3,
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
COLUMNS = ["prompt", "chosen", "rejected", "completion", "label", "messages"]
COLUMNS += ["conversations", "text", "meta"]
cells = st.one_of(texts, messages, values)
# Columns of one file, so that most rows have the shape of the first.
files = st.sets(st.sampled_from(COLUMNS), min_size=1, max_size=4).flatmap(
    lambda columns: st.lists(
        st.one_of(st.fixed_dictionaries(dict.fromkeys(columns, cells)), values), max_size=4
    )
)
# Rows that mostly work, so that tokenising and dropping are reached as well.
turns = st.lists(
    st.sampled_from(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "system", "content": ""},
            {"role": "assistant", "content": "\u2028 😀"},
        ]
    ),
    max_size=3,
)
pairs = st.lists(
    st.one_of(
        st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}),
        st.fixed_dictionaries({"prompt": turns, "chosen": turns, "rejected": turns}),
    ),
    max_size=4,
)
kinds = st.sampled_from(["pair", "labelled", "demonstration"])


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def load(path, kind, tokenizer):
    """Check that a file loads, or raises PrefcliError with a place and a readable message."""
    try:
        split = load_split(
            [Source(path=str(path))], "data.train", kind, tokenizer, limits=Limits(16), seed=0
        )
    except PrefcliError as error:
        for problem in error.problems:
            assert problem.place or problem.path
            assert 0 < len(problem.message) < 1000
    else:
        dropped = sum(d.count for d in split.dropped.values())
        assert len(split.rows) >= split.read - dropped > 0
        assert len(split.place(0)) > 0


@settings(quick, max_examples=400)
@given(rows=st.one_of(files, pairs), kind=kinds, ascii_=st.booleans(), array=st.booleans())
def test_load_split_any_rows_load_or_raise(tmp_path_factory, tokenizer, rows, kind, ascii_, array):
    path = tmp_path_factory.getbasetemp() / ("any.json" if array else "any.jsonl")
    text = (
        json.dumps(rows, ensure_ascii=ascii_)
        if array
        else "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in rows)
    )
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    load(path, kind, tokenizer)


@settings(quick, max_examples=400)
@given(
    content=st.one_of(
        st.binary(max_size=40),
        st.text("[]{}\",:\\ \n\r1e-.tfnu'q", max_size=40).map(str.encode),
        st.builds(
            lambda rows, at, junk: (
                (text := json.dumps(rows).replace("}, {", "}\n{").encode())[: at % (len(text) + 1)]
                + junk
                + text[at % (len(text) + 1) :]
            ),
            pairs,
            st.integers(0, 10_000),
            st.binary(max_size=3),
        ),
    ),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    kind=kinds,
)
def test_load_split_any_bytes_load_or_raise(tmp_path_factory, tokenizer, content, suffix, kind):
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(content)
    load(path, kind, tokenizer)
