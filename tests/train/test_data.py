"""Sources, row formats, counts, and the errors of invalid data: file, row, actual and expected."""
# ruff: noqa: E501 - one case per line

from __future__ import annotations

import copy
import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from prefcli import progress_bar
from prefcli.data import Limits, judge, load_split, tokenization
from prefcli.data.row_stats import measure_row
from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import DataError, ExitCode, PrefcliError, RecipeError
from prefcli.methods import METHODS
from prefcli.model import load_tokenizer
from prefcli.recipe.sections import DataChecks, Source
from tests.support.problems import stops_with
from tests.support.tiny_runs import ANYTHING, TEMPLATE, pairs, trainer_of, write_jsonl

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": " good"}
B, S = {"role": "assistant", "content": " bad"}, {"role": "system", "content": "s"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": " good"}
HH = "\n\nHuman: q\n\nAssistant:"
PAIR = {"prompt": "q", "chosen": " good", "rejected": " bad"}
LABELLED = {"prompt": "q", "completion": " good", "label": True}
CHAT_PAIR = {"prompt": [U], "chosen": [A], "rejected": [B]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def read(tokenizer, tmp_path, monkeypatch):
    """Call load_split in an empty folder with sources as in a recipe."""
    monkeypatch.chdir(tmp_path)

    def read(*sources, kind="pair", tokenizer=tokenizer, max_length=64, **options):
        options = {"limits": Limits(max_length), "seed": 1, **options}
        return load_split(
            [
                Source.model_validate(s if isinstance(s, dict) else {"path": str(s)})
                for s in sources
            ],
            "data.train",
            kind,
            tokenizer,
            **options,
        )

    return read


def plain(split):
    return split.rows.remove_columns(["_file", "_row"]).to_list()


def rows_of(split):
    return split.rows["_row"][:]


# --- containers


def as_json(path, rows):
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def as_csv(path, rows):
    Dataset.from_list(rows).to_csv(str(path))


def as_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(str(path))


CONTAINERS = {
    "rows.jsonl": write_jsonl,
    "rows.JSONL": write_jsonl,
    "array.json": as_json,
    "lines.json": write_jsonl,
    "array.jsonl": lambda path, rows: path.write_text(json.dumps(rows), "utf-8"),
    "rows.parquet": as_parquet,
    "rows.csv": as_csv,
    "saved": lambda path, rows: Dataset.from_list(rows).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_load_split_container_returns_rows_and_places(read, name):
    rows = pairs(5)
    CONTAINERS[name](Path(name), rows)
    split = read(name)
    assert plain(split) == rows
    assert (split.read, rows_of(split), split.place(4)) == (5, [1, 2, 3, 4, 5], f"{name}: row 5")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved"])
@pytest.mark.parametrize(
    ("slice_", "expected"),
    [
        ("[:2]", [1, 2]),
        ("[3:]", [4, 5]),
        ("[-2:]", [4, 5]),
        ("[40%:80%]", [3, 4]),
        ("[2:99]", [3, 4, 5]),
    ],
)
def test_load_split_slice_keeps_row_numbers(read, name, slice_, expected):
    CONTAINERS[name](Path(name), pairs(5))
    split = read({"path": name, "split": f"train{slice_}"})
    assert rows_of(split) == expected
    assert plain(split) == [pairs(5)[n - 1] for n in expected]


def test_load_split_saved_dataset_dict_reads_named_split(read):
    DatasetDict(
        train=Dataset.from_list(pairs(3)), test_prefs=Dataset.from_list(pairs(9)[5:])
    ).save_to_disk("saved")
    assert plain(read("saved")) == pairs(3)
    split = read({"path": "saved", "split": "test_prefs[1:3]"})
    assert plain(split) == pairs(8)[6:]
    assert rows_of(split) == [2, 3]


def test_load_split_folder_reads_files_of_split(read):
    Path("folder/more").mkdir(parents=True)
    write_jsonl(Path("folder/train.jsonl"), pairs(2))
    write_jsonl(Path("folder/test.jsonl"), pairs(3)[2:])
    write_jsonl(Path("folder/more/a.jsonl"), pairs(5)[3:])
    assert plain(read("folder")) == pairs(2)
    assert plain(read({"path": "folder", "split": "test"})) == pairs(3)[2:]
    assert plain(read({"path": "folder", "data_files": "more/*.jsonl"})) == pairs(5)[3:]
    both = read(
        {"path": "folder", "data_files": ["train.jsonl", "more/a.jsonl"], "split": "train[1:]"}
    )
    assert plain(both) == [pairs(2)[1], *pairs(5)[3:]]
    assert [both.place(i) for i in range(3)] == [
        "folder/train.jsonl: row 2",
        "folder/more/a.jsonl: row 1",
        "folder/more/a.jsonl: row 2",
    ]


def test_load_split_folder_of_parquet_reads_slice(read):
    Path("folder/data").mkdir(parents=True)
    for i in range(2):
        as_parquet(Path(f"folder/data/train-0000{i}-of-00002.parquet"), pairs(6)[i * 3 : i * 3 + 3])
    split = read({"path": "folder", "split": "train[2:5]"})
    assert plain(split) == pairs(5)[2:]
    assert split.place(2) == "folder/data/train-00001-of-00002.parquet: row 2"


def test_load_split_tilde_expands_home(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(Path("rows.jsonl"), pairs(2))
    assert read("~/rows.jsonl").place(1) == f"{tmp_path}/rows.jsonl: row 2"


def test_load_split_fractions_draw_with_seed(read):
    write_jsonl(Path("a.jsonl"), pairs(40))
    write_jsonl(Path("b.jsonl"), pairs(20))
    sources = [
        {"path": "a.jsonl", "fraction": 0.25},
        {"path": "b.jsonl", "split": "train[:10]", "fraction": 0.5},
    ]

    def drawn(**options):
        split = read(*sources, **options)
        assert split.read == len(split.rows) == 15
        return [split.place(i) for i in range(15)]

    places = drawn()
    assert [p[0] for p in places] == ["a"] * 10 + ["b"] * 5
    assert all(int(p.rpartition(" ")[2]) <= 10 for p in places[10:])
    assert len(set(places)) == 15
    assert drawn() == places
    assert drawn(seed=2) != places
    assert sorted(drawn(shuffle=True)) == sorted(places) != drawn(shuffle=True)
    assert read({"path": "b.jsonl", "fraction": 0.001}).read == 1
    assert read({"path": "b.jsonl", "rows": 7}).read == 7
    assert read({"path": "b.jsonl", "rows": 99}).read == 20


def test_load_split_columns_renames_and_swaps(read):
    write_jsonl(
        Path("rows.jsonl"),
        [{"question": "q", "chosen": " bad", "rejected": " good", "prompt": 7}] * 2,
    )
    columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    assert plain(read({"path": "rows.jsonl", "columns": columns})) == [PAIR] * 2


def test_load_split_columns_may_repeat_a_column(read):
    write_jsonl(Path("rows.jsonl"), [{"x": "q", "y": " good"}])
    split = read({"path": "rows.jsonl", "columns": {"prompt": "x", "chosen": "y", "rejected": "x"}})
    assert plain(split) == [{"prompt": "q", "chosen": " good", "rejected": "q"}]


def test_load_split_keeps_values_of_the_file(read):
    """Readers that guess types turn quoted dates, numbers and nulls into other values."""
    rows = [
        {"prompt": p, "chosen": c, "rejected": r}
        for p, c, r in [
            ("2024-01-01", "1", "NA"),
            ("2024-01-02", "2.50", "None"),
            ("null", "007", "nan"),
        ]
    ]
    for name in ("rows.jsonl", "array.json", "rows.csv", "rows.parquet"):
        CONTAINERS[name](Path(name), rows)
        assert plain(read(name)) == rows


def test_load_split_csv_reads_labels_and_multiline_cells(read):
    Path("rows.csv").write_text(
        'completion,good,prompt\n" a ""b""\n,c",True,q\n d,FALSE,q\n\n,true,q\n', "utf-8"
    )
    split = read({"path": "rows.csv", "columns": {"label": "good"}}, kind="labelled")
    assert plain(split) == [
        {"prompt": "q", "completion": ' a "b"\n,c', "label": True},
        {"prompt": "q", "completion": " d", "label": False},
    ]
    assert split.as_dict()["dropped"] == {"empty completion": 1}
    assert split.dropped["empty completion"].first == ["rows.csv: row 3"]


NAMES = ("rows.jsonl", "array.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["no bom", "bom"])
def test_load_split_line_ends_and_bom_are_accepted(read, name, newline, bom):
    """U+2028 and U+0085, where Python's splitlines breaks lines, may be inside strings."""
    rows = [{**PAIR, "prompt": f"a\u2028b\u0085c {i}"} for i in range(3)]
    if name == "array.json":
        text = (
            newline.join(["[", *(json.dumps(r, ensure_ascii=False) + "," for r in rows)]).rstrip(
                ","
            )
            + "]"
        )
        numbers = [1, 2, 3]
    else:
        text = newline.join(json.dumps(r, ensure_ascii=False) for r in rows).replace(
            "}", "}" + newline, 1
        )
        numbers = [1, 3, 4]  # a blank line counts, as in an editor
    Path(name).write_bytes((bom + text).encode())
    split = read(name)
    assert plain(split) == rows
    assert rows_of(split) == numbers


def test_load_split_ignores_other_columns(read):
    junk = [1, "a", None, [1, "b", {"c": []}], {"d": {"e": [{}]}}, 10**40, float("nan"), {}]
    rows = [{**PAIR, "meta": value, f"only {i}": value} for i, value in enumerate(junk)]
    # Each of these makes a reader of datasets mistake the file for another format.
    rows[0] |= {"type": "session", "id": "1", "source": "x", "model": "m", "system_prompt": "s"}
    write_jsonl(Path("rows.jsonl"), rows)
    assert plain(read("rows.jsonl")) == [PAIR] * len(junk)


# --- row formats

MESSAGES = {"messages": [S, U, A]}
FORMATS = {
    "pairs": ("pair", PAIR, PAIR),
    "messages": ("pair", CHAT_PAIR, CHAT_PAIR),
    "prompt in both": ("pair", {"prompt": [S, U], "chosen": [S, U, A], "rejected": [S, U, B]}, {**CHAT_PAIR, "prompt": [S, U]}),
    "ultrafeedback": ("pair", {"prompt": "q", "chosen": [U, A], "rejected": [U, B], "score_chosen": 8.0}, CHAT_PAIR),
    "sharegpt": ("pair", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": " bad"}}, CHAT_PAIR),
    "whole conversations": ("pair", {"chosen": [U, A], "rejected": [U, B]}, CHAT_PAIR),
    "hh": ("pair", {"chosen": f"{HH} good", "rejected": f"{HH} bad"}, {**PAIR, "prompt": HH}),
    "labelled": ("labelled", LABELLED, LABELLED),
    "labelled messages": ("labelled", {"prompt": [U], "completion": [A], "label": False}, {"prompt": [U], "completion": [A], "label": False}),
    "sft messages": ("demonstration", MESSAGES, MESSAGES),
    "sft sharegpt": ("demonstration", {"conversations": [HUMAN, GPT]}, {"messages": [U, A]}),
    "sft prompt": ("demonstration", {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}),
    "sft text": ("demonstration", {"text": "a b"}, {"text": "a b"}),
    "sft from pairs": ("demonstration", {**PAIR, "rejected": ""}, {"prompt": "q", "completion": " good"}),
    "sft from whole conversations": ("demonstration", {"chosen": [U, A], "rejected": [U, B]}, {"prompt": [U], "completion": [A]}),
    "sft from labelled": ("demonstration", LABELLED, {"prompt": "q", "completion": " good"}),
}  # fmt: skip


@pytest.mark.parametrize("container", ["rows.jsonl", "rows.parquet", "array.json"])
@pytest.mark.parametrize(("kind", "row", "canonical"), FORMATS.values(), ids=FORMATS)
def test_load_split_format_returns_canonical_rows(read, container, kind, row, canonical):
    CONTAINERS[container](Path(container), [row] * 3)
    split = read(container, kind=kind)
    assert plain(split) == [canonical] * 3
    assert split.conversational == any(isinstance(v, list) for v in canonical.values())
    assert split.lines()[0] == f"train: 3 rows read, 3 kept, {split.tokens} tokens"
    assert split.dropped == {}


def test_load_split_pairs_become_two_labelled_rows(read):
    rows = [*pairs(4), {**PAIR, "chosen": " ", "prompt": "q"}]
    write_jsonl(Path("rows.jsonl"), rows)
    split = read("rows.jsonl", kind="labelled")
    assert plain(split) == [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for r in pairs(4)
    ]
    assert rows_of(split) == [1, 2, 3, 4] * 2
    lines = split.lines()
    assert lines[:2] == [
        f"train: 5 rows read, 8 kept, {split.tokens} tokens",
        "train: 1 row dropped: empty chosen (first: rows.jsonl: row 5)",
    ]
    assert "train: 4 pairs became two labelled rows each" in lines


def test_load_split_mixes_kinds_with_equal_canonical_rows(read):
    write_jsonl(Path("pairs.jsonl"), [PAIR])
    write_jsonl(Path("labelled.jsonl"), [{**LABELLED, "label": False}, LABELLED])
    labels = read("pairs.jsonl", "labelled.jsonl", kind="labelled")
    assert labels.rows["label"][:] == [True, False, False, True]
    assert labels.notes == ["1 pairs became two labelled rows each"]
    sft = read("pairs.jsonl", "labelled.jsonl", kind="demonstration")
    assert plain(sft) == [{"prompt": "q", "completion": " good"}] * 2
    assert sft.as_dict()["dropped"] == {"label is false (sft uses only rows labelled true)": 1}


def test_load_split_detects_format_by_first_row_that_has_one(read):
    write_jsonl(
        Path("rows.jsonl"),
        [{"chosen": None, "rejected": None}, {"chosen": [U, A], "rejected": [U, B]}],
    )
    with pytest.raises(DataError, match=r"rows.jsonl: row 1: found nothing in 'chosen'"):
        read("rows.jsonl")


# --- counts

CRAFTED = [
    (PAIR, None),
    ({**PAIR, "chosen": ""}, "empty chosen"),
    ({**PAIR, "chosen": " \n\t"}, "empty chosen"),
    ({**PAIR, "rejected": ""}, "empty rejected"),
    (PAIR, None),
    ({**PAIR, "prompt": ""}, "empty prompt"),
    ({**PAIR, "prompt": "  "}, "empty prompt"),
    ({**PAIR, "chosen": " bad"}, "chosen and rejected are identical"),
    ({**PAIR, "prompt": "x" * 16}, "the prompt alone fills max_length"),
    ({**PAIR, "prompt": "x" * 99}, "the prompt alone fills max_length"),
    ({**PAIR, "prompt": "x" * 15}, "cut"),
    ({**PAIR, "chosen": "x" * 15}, None),  # 1 + 15 + the end token are 17
    ({**PAIR, "chosen": "x" * 14}, None),
    ({**PAIR, "rejected": "x" * 40}, "cut"),
    ({**PAIR, "chosen": "x" * 40, "rejected": "x" * 41}, "identical after the cut"),
    ({**PAIR, "chosen": "", "rejected": ""}, "empty chosen"),
    ({**PAIR, "chosen": " bad"}, "chosen and rejected are identical"),
    ({**PAIR, "chosen": "", "prompt": ""}, "empty prompt"),
    ({**PAIR, "chosen": "\u2003"}, "empty chosen"),
    (PAIR, None),
]  # fmt: skip
CRAFTED[11] = (CRAFTED[11][0], "cut")


def test_load_split_counts_every_dropped_row(read):
    write_jsonl(Path("rows.jsonl"), [row for row, _ in CRAFTED])
    split = read("rows.jsonl", max_length=16)
    remaining = [i for i, (_, why) in enumerate(CRAFTED) if why in (None, "cut")]
    assert rows_of(split) == [i + 1 for i in remaining] == [1, 5, 11, 12, 13, 14, 20]
    tokens = split.tokens
    document = split.as_dict()
    figures = ("findings", "lengths", "fingerprint")
    assert {name: document[name] for name in document if name not in figures} == {
        "read": 20,
        "available": 20,
        "kept": 7,
        "tokens": tokens,
        "dropped": {
            "empty chosen": 4,
            "empty rejected": 1,
            "empty prompt": 3,
            "chosen and rejected are identical": 2,
            "the prompt alone fills max_length": 2,
            "chosen and rejected are identical after the cut at max_length": 1,
        },
        "notes": [],
    }
    assert split.lines()[:8] == [
        f"train: 20 rows read, 7 kept, {tokens} tokens",
        "train: 4 rows dropped: empty chosen (first: rows.jsonl: row 2, row 3, row 16)",
        "train: 1 row dropped: empty rejected (first: rows.jsonl: row 4)",
        "train: 3 rows dropped: empty prompt (first: rows.jsonl: row 6, row 7, row 18)",
        "train: 2 rows dropped: chosen and rejected are identical (first: rows.jsonl: row 8, row 17)",
        "train: 2 rows dropped: the prompt alone fills max_length (first: rows.jsonl: row 9, row 10)",
        "train: 1 row dropped: chosen and rejected are identical after the cut at max_length (first: rows.jsonl: row 15)",
        "train: cut: 3 of 20 rows (15 %): a completion is cut at max_length (chosen in 2, rejected in 2; max_length 105 cuts at most 1 %); first: rows.jsonl: row 11, row 12, row 14",
    ]


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.rows != "prompt"])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "messages"])
def test_trainer_keeps_the_rows_of_the_split(recipe_data, make_recipe, tmp_path, name, chat):
    """make_trainer asserts the equality; this test adds two processes."""
    rows = [row for row, _ in CRAFTED]
    if chat:
        rows = [
            {
                "prompt": [{**U, "content": row["prompt"]}],
                "chosen": [{**A, "content": row["chosen"]}],
                "rejected": [{**A, "content": row["rejected"]}],
            }
            for row in rows
        ]
    recipe_data["data"] = {
        "checks": ANYTHING,
        "train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))},
        "max_length": 16,
    }
    recipe = make_recipe(recipe_data).recipe
    tokenizer = load_tokenizer(recipe.model)
    trainer, inputs = trainer_of(recipe, name, tokenizer)
    split = inputs.train
    remaining = len(split.rows) // (2 if name == "kto" else 1)
    assert len(trainer.train_dataset) == len(split.rows)
    assert split.read == 20 == remaining + sum(d.count for d in split.dropped.values())
    if name == "dpo":
        ids = trainer.train_dataset.to_list()
        sides = [r["prompt_ids"] + r[s] for r in ids for s in ("chosen_ids", "rejected_ids")]
        assert split.tokens == sum(min(len(side), 16) for side in sides)
    adapter = recipe.methods[name].trainer
    limits = Limits(16, adapter.prompt_margin, drops_longer_rows=adapter.drops_longer_rows)
    two = load_split(
        recipe.data.train, "data.train", recipe.methods[name].rows, tokenizer, limits=limits,
        seed=recipe.seed, num_proc=2, shuffle=recipe.methods[name].trainer.keeps_row_order,
    )  # fmt: skip
    two, one = two.as_dict(), split.as_dict()
    one["findings"].pop("matched_neighbours", None)  # of device batches, which come later
    assert two == one


def test_split_counts_tokens_as_trl_divides_them(recipe_data, make_recipe, tmp_path):
    """The prompt merges with one side only, so kto sees a longer prompt with the other."""
    rows = [{"prompt": "x" * 14 + "re", "chosen": "d", "rejected": "x"}, PAIR]
    for length in range(14, 19):
        recipe_data["data"] = {
            "checks": ANYTHING,
            "train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))},
            "max_length": length,
        }
        trainer_of(make_recipe(recipe_data).recipe, "kto")


def test_load_split_template_without_answer_drops_all_rows(read, tokenizer, tiny_model):
    silent = AutoTokenizer.from_pretrained(tiny_model)
    silent.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    write_jsonl(Path("rows.jsonl"), [CHAT_PAIR])
    with pytest.raises(DataError, match="all rows were dropped: the chat template writes nothing"):
        read("rows.jsonl", tokenizer=silent)


# --- invalid data


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DEEP = b"[" * 100_000
INVALID = {
    # id: (kind, file's bytes, place, code, phrases)
    "malformed line": ("pair", lines(PAIR) + b'{"prompt": "q", \n' + lines(PAIR), "row 2", "DAT010", "not JSON | column 17 | one JSON object per line"),
    "cut file": ("pair", lines(PAIR, PAIR)[:-4], "row 2", "DAT010", "not JSON | Unterminated string"),
    "single quotes": ("pair", b"{'prompt': 'q'}\n", "row 1", "DAT010", "not JSON | property name enclosed in double quotes"),
    "two objects on a line": ("pair", lines(PAIR).strip() + lines(PAIR), "row 1", "DAT010", "Extra data"),
    "row a list": ("pair", lines(PAIR, [1, 2]), "row 2", "DAT010", "a list of 2 | an object such as"),
    "all rows lists": ("pair", lines([1], [2]), "row 1", "DAT010", "a list of 1 | an object"),
    "row text": ("pair", lines(PAIR, "q"), "row 2", "DAT010", "text 'q' | an object"),
    "row null": ("pair", lines(None, PAIR), "row 1", "DAT010", "nothing | an object"),
    "pretty-printed": ("pair", json.dumps(PAIR, indent=1).encode(), "", "DAT001", "one object with keys 'prompt' | one row per line"),
    "pretty-printed, wrapped": ("pair", json.dumps({"version": 1, "data": [PAIR]}, indent=1).encode(), "", "DAT001", "the file is one object | array under 'data'"),
    "pretty-printed, many": ("pair", json.dumps(PAIR, indent=1).encode() * 2, "row 1", "DAT010", "text '{', which is not JSON | one JSON object per line"),
    "broken array": ("pair", b'[\n{"prompt": "q"},\n{"prompt" 1}\n]', ":3:11", "DAT001", "not JSON: Expecting ':'"),
    "not UTF-8": ("pair", lines(PAIR) + '{"prompt": "é"}\n'.encode("latin-1"), "row 2", "DAT010", "the byte 0xe9, which is not UTF-8"),
    "UTF-16": ("pair", lines(PAIR).decode().encode("utf-16"), "", "DAT001", "the file is in UTF-16; expected UTF-8 | iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without a mark": ("pair", lines(PAIR).decode().encode("utf-16-be"), "", "DAT001", "the file is in UTF-16BE"),
    "half an emoji": ("pair", lines(PAIR, {**PAIR, "chosen": "a \ud83d"}), "row 2", "DAT010", "an invalid surrogate '\\ud83d' in 'chosen' | cut inside an emoji"),
    "too deep": ("pair", lines(PAIR) + DEEP + b"\n", "row 2", "DAT010", "nested too deeply"),
    "too deep, whole": ("pair", DEEP, "", "DAT001", "nested too deeply"),
    "5000 digits": ("pair", lines(PAIR) + b'{"prompt": ' + b"9" * 5000 + b"}\n", "row 2", "DAT010", "a number with too many digits"),
    "binary": ("pair", b"\x00\x01\x02\n\xff\xfe", "row 1", "DAT010", "not JSON"),
    "after blank lines": ("pair", b"\n\n" + lines(PAIR) + b" \t\n\r\n" + lines({**PAIR, "chosen": 1}), "row 6", "DAT010", "int 1 in 'chosen'"),
    "after line separators": ("pair", json.dumps({**PAIR, "prompt": "\u2028\u2029\u0085\x0b"}, ensure_ascii=False).encode() + b"\n{\n", "row 2", "DAT010", "not JSON"),
    "type change": ("pair", lines(*[PAIR] * 1500, {**PAIR, "rejected": 3}), "row 1501", "DAT010", "int 3 in 'rejected' | text"),
    "text, then messages": ("pair", lines(PAIR, PAIR, CHAT_PAIR), "row 3", "DAT010", "messages in 'prompt' | expected text, as in rows.jsonl: row 1"),
    "messages, then text": ("pair", lines(CHAT_PAIR, PAIR), "row 2", "DAT010", "text in 'prompt' | expected messages, as in rows.jsonl: row 1"),
    "mixed in a row": ("pair", lines({**PAIR, "rejected": [B]}), "row 1", "DAT010", "a list of 1 in 'rejected' with a text prompt"),
    "chosen null": ("pair", lines(PAIR, {**PAIR, "chosen": None}), "row 2", "DAT010", "nothing in 'chosen'"),
    "chosen missing": ("pair", lines(PAIR, {"prompt": "q", "rejected": "b"}), "row 2", "DAT010", "nothing in 'chosen'"),
    "all null": ("pair", lines(*[dict.fromkeys(PAIR)] * 3), "row 1, row 2, row 3", "DAT010", "nothing in 'prompt'"),
    "prompt a number": ("pair", lines({**PAIR, "prompt": 3}), "row 1", "DAT010", "int 3 in 'prompt' | text or a list of messages"),
    "prompt a huge number": ("pair", lines({**PAIR, "prompt": 10**300}), "row 1", "DAT010", "int 1000 | in 'prompt'"),
    "prompt an object": ("pair", lines({**PAIR, "prompt": {"a": 1}}), "row 1", "DAT010", "an object with keys 'a' in 'prompt'"),
    "label text": ("labelled", lines({**LABELLED, "label": "yes"}), "row 1", "DAT010", "text 'yes' in 'label' | true or false"),
    "label a number": ("labelled", lines({**LABELLED, "label": 3}), "row 1", "DAT010", "int 3 in 'label' | true or false"),
    "label null": ("labelled", lines({**LABELLED, "label": None}), "row 1", "DAT010", "nothing in 'label'"),
    "pairs differ before": ("pair", lines({"chosen": [U, A], "rejected": [S, U, B]}), "row 1", "DAT010", "conversations that differ before their last turn | the same messages"),
    "hh differs": ("pair", lines({"chosen": f"{HH} a", "rejected": f"x{HH} b"}), "row 1", "DAT010", "texts that differ before their last"),
    "last role user": ("pair", lines({"chosen": [U, A, U], "rejected": [U, B]}), "row 1", "DAT010", "'chosen' that ends with user | an assistant message at the end"),
    "sft, last role user": ("demonstration", lines({"messages": [U, A, U]}), "row 1", "DAT010", "'messages' that ends with user"),
    "prompt ends with system": ("pair", lines({**CHAT_PAIR, "prompt": [U, S]}), "row 1", "DAT010", "a prompt that ends with a system message | a user message at the end"),
    "unknown role": ("demonstration", lines({"messages": [{"role": "boss", "content": "q"}, A]}), "row 1", "DAT010", "text 'boss' as role of messages[0] | one of user"),
    "tool calls": ("demonstration", lines({"messages": [U, {**A, "tool_calls": [1]}]}), "row 1", "DAT010", "a list of 1 as tool_calls of messages[1] | a list of calls"),
    "content null": ("demonstration", lines({"messages": [U, {"role": "assistant", "content": None}]}), "row 1", "DAT010", "nothing as content of messages[1]"),
    "content a list": ("demonstration", lines({"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}), "row 1", "DAT010", "a part of type 'image' in content of messages[0] | parts of text"),
    "messages null": ("demonstration", lines({"messages": None}), "row 1", "DAT010", "nothing in 'messages'"),
    "a message of null": ("demonstration", lines({"messages": [None, A]}), "row 1", "DAT010", "nothing in messages[0]"),
    "empty file": ("pair", b"", "", "DAT002", "the file is empty"),
    "blank file": ("pair", b"\n \n", "", "DAT002", "the source has no rows"),
    "only a mark": ("pair", b"\xef\xbb\xbf", "", "DAT002", "the source has no rows"),
    "empty array": ("pair", b"[]", "", "DAT002", "the source has no rows"),
    "rows without columns": ("pair", b"{}\n{}\n", "", "DAT011", "found columns none | expected prompt, chosen, rejected"),
    "nothing left": ("pair", lines({**PAIR, "chosen": ""}, {**PAIR, "chosen": " bad"}), "", "DAT015", "all rows were dropped: empty chosen (1), chosen and rejected are identical (1)"),
    "nothing left, messages": ("pair", lines({**CHAT_PAIR, "chosen": [{**A, "content": ""}]}), "", "DAT015", "all rows were dropped: empty chosen (1)"),
    "pairs for sft text": ("demonstration", lines({"question": "q", "answer": "a"}), "", "DAT011", "found columns question, answer | name them with data.train.columns"),
    "labelled for dpo": ("pair", lines(LABELLED), "", "DAT012", "found prompt, completion, label, which is labelled | prefcli kto"),
    "messages for dpo": ("pair", lines(MESSAGES), "", "DAT012", "found messages, which is messages | prefcli sft"),
    "messages for kto": ("labelled", lines(MESSAGES), "", "DAT012", "which is messages | prefcli sft"),
    "text for dpo": ("pair", lines({"text": "a"}), "", "DAT012", "found text, which is text | prefcli sft"),
    "no prompt": ("pair", lines({"question": "q", "chosen": "a", "rejected": "b"}), "", "DAT011", "found columns question, chosen, rejected | the prompt is not derived | data.train.columns: {prompt: question}"),
}  # fmt: skip


def check(caught, kind, place, code, phrases):
    error = caught.value
    assert error.exit_code == {DataError: ExitCode.DATA, RecipeError: ExitCode.RECIPE}[kind]
    first = error.problems[0]
    assert first.code in code.split(" or ")
    if place is not None:
        assert first.place == place
    text = str(error)
    for phrase in phrases.split(" | "):
        assert phrase in text
    assert len(text) < 3000
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("kind", "content", "place", "code", "phrases"), INVALID.values(), ids=INVALID
)
def test_load_split_invalid_file_raises_data_error(read, kind, content, place, code, phrases):
    Path("rows.jsonl").write_bytes(content)
    with pytest.raises(PrefcliError) as caught:
        read("rows.jsonl", kind=kind)
    separator = ": " if place and not place.startswith(":") else ""
    check(caught, DataError, f"rows.jsonl{separator}{place}", code, phrases)


def test_load_split_many_invalid_rows_are_shown_at_once(read):
    rows = [PAIR if i % 2 else {**PAIR, "chosen": i} for i in range(50)]
    write_jsonl(Path("rows.jsonl"), rows)
    with pytest.raises(DataError) as caught:
        read("rows.jsonl")
    (problem,) = caught.value.problems
    assert problem.place == "rows.jsonl: row 1, row 3, row 5"
    assert problem.message == (
        "25 of 50 rows (50 %): found int 0 in 'chosen' with a text prompt (1), int 2 in 'chosen' "
        "with a text prompt (1), int 4 in 'chosen' with a text prompt (1), and 22 other values; "
        "expected text"
    )


def test_load_split_invalid_rows_of_two_causes_are_two_problems(read):
    rows = [PAIR, {**PAIR, "chosen": None}, {**PAIR, "prompt": None}, {**PAIR, "chosen": None}]
    write_jsonl(Path("rows.jsonl"), rows)
    with pytest.raises(DataError) as caught:
        read("rows.jsonl")
    assert [(p.place, p.message) for p in caught.value.problems] == [
        (
            "rows.jsonl: row 2, row 4",
            "2 of 4 rows (50 %): found nothing in 'chosen' with a text prompt; expected text",
        ),
        ("rows.jsonl: row 3", "found nothing in 'prompt'; expected text or a list of messages"),
    ]


DROPPED = {
    # id: (kind, valid row, invalid row, finding, what was found)
    "messages part": ("pair", {"chosen": [U, A], "rejected": [U, B]}, {"chosen": [U, A, U, A], "rejected": [U, B, U, A]}, "parted", "conversations that differ before their last turn"),
    "text parts": ("pair", {"chosen": f"{HH} a", "rejected": f"{HH} b"}, {"chosen": f"{HH} a", "rejected": f"x{HH} b"}, "parted", "texts that differ before their last 'Assistant:'"),
    "a side ends with the user": ("pair", CHAT_PAIR, {**CHAT_PAIR, "rejected": [U, B, U]}, "turns", "'rejected' that ends with user"),
    "no question": ("pair", CHAT_PAIR, {**CHAT_PAIR, "prompt": [U, A]}, "turns", "a prompt that ends with an assistant message"),
    "sft, ends with the user": ("demonstration", MESSAGES, {"messages": [U, A, U]}, "turns", "'messages' that ends with user"),
    "sft, no answer": ("demonstration", MESSAGES, {"messages": [S, U]}, "turns", "'messages' without an assistant message"),
    "kto, a side ends with the user": ("labelled", CHAT_PAIR, {**CHAT_PAIR, "rejected": [U]}, "turns", "'rejected' that ends after the prompt"),
    "label a word": ("labelled", LABELLED, {**LABELLED, "label": "good"}, "bad_label", "text 'good' in 'label'"),
    "label null": ("labelled", LABELLED, {**LABELLED, "label": None}, "bad_label", "nothing in 'label'"),
    "label null, sft": ("demonstration", LABELLED, {**LABELLED, "label": None}, "bad_label", "nothing in 'label'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "valid", "invalid", "name", "value"), DROPPED.values(), ids=DROPPED
)
def test_load_split_drops_rows_that_public_data_has(read, kind, valid, invalid, name, value):
    write_jsonl(Path("rows.jsonl"), [valid, invalid, valid, invalid])
    split = read("rows.jsonl", kind=kind)
    finding = next(f for f in split.findings if f.name == name)
    assert (finding.count, finding.total, finding.remaining) == (2, 4, 0)
    assert finding.first == ["rows.jsonl: row 2", "rows.jsonl: row 4"]
    assert finding.note == f"found {value}"
    assert sum(tally.count for tally in split.dropped.values()) == 2
    _, (error,) = judge({"train": [finding]}, DataChecks())
    assert f"data.checks.{name}.error" in str(error)
    assert value in str(error)


def test_load_split_rows_of_which_all_would_be_dropped_are_one_problem(read):
    rows = [{"chosen": [U, A, U, A], "rejected": [U, B, U, A]}] * 12
    write_jsonl(Path("rows.jsonl"), rows)
    with pytest.raises(DataError) as caught:
        read("rows.jsonl")
    (problem,) = caught.value.problems
    assert problem.message.startswith("12 of 12 rows (100 %): found conversations that differ")


# --- what the chat template makes of the messages

# Keeps of an answer what follows </think>, and skips tool turns.
STRIPPING = (
    "{% for m in messages if m.role != 'tool' %}{{ m.role }}:"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
READS_REASONING = STRIPPING.replace("{{ m.role }}:", "{{ m.role }}:{{ m.reasoning or '' }}")
THOUGHT = {"role": "assistant", "content": "<think>x</think> good"}
RESULT = {"role": "tool", "content": "four"}
KEY = {**A, "thinking": "red dog"}
RENDERED = {
    # id: (kind, row, template, what is not rendered)
    "sft, stripped": ("demonstration", {"messages": [U, THOUGHT]}, STRIPPING, "text of assistant in 1"),
    "sft, tool turn": ("demonstration", {"messages": [U, A, RESULT, A]}, STRIPPING, "text of tool in 1"),
    "sft, a tool turn whose text is elsewhere": ("demonstration", {"messages": [U, A, {**RESULT, "content": "goo"}, A]}, STRIPPING, "text of tool in 1"),
    "sft, tools": ("demonstration", {"messages": [U, A], "tools": [{"type": "function", "function": {"name": "q"}}]}, STRIPPING, "tools in 1"),
    "kto, options": ("labelled", {"prompt": [U], "completion": [A], "label": True, "chat_template_kwargs": {"loud": True}}, STRIPPING, "loud of chat_template_kwargs in 1"),
    "dpo, options": ("pair", {**CHAT_PAIR, "chat_template_kwargs": {"loud": True}}, "{{ loud }}" + STRIPPING, None),
    "null content": ("demonstration", {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "good"}}]}, A]}, STRIPPING, None),
    "sft, key": ("demonstration", {"messages": [U, KEY]}, STRIPPING, "thinking of assistant in 1"),
    "sft, call": ("demonstration", {"messages": [U, {**A, "tool_calls": [{"function": {"name": "find"}}]}, A]}, STRIPPING, "tool_calls of assistant in 1"),
    "dpo, both": ("pair", {"prompt": [U, A, RESULT], "chosen": [THOUGHT], "rejected": [B]}, STRIPPING, "text of assistant in 1, text of tool in 1"),
    "kto": ("labelled", {"prompt": [U], "completion": [THOUGHT], "label": True}, STRIPPING, "text of assistant in 1"),
    "kto of a pair": ("labelled", {"prompt": [U], "chosen": [A], "rejected": [{**B, "thinking": "red dog"}]}, STRIPPING, "thinking of assistant in 1"),
    "the key is read": ("demonstration", {"messages": [U, {**A, "reasoning": "red dog"}]}, READS_REASONING, None),
    "the key is renamed": ("pair", {"prompt": [U], "chosen": [KEY], "rejected": [B]}, READS_REASONING, None),
    "as JSON": ("demonstration", {"messages": [{**U, "content": 'a "b" \n c'}, A]}, STRIPPING.replace("else m.content", "else m.content | tojson"), None),
    "spaces": ("demonstration", {"messages": [{**U, "content": " q\n"}, A]}, STRIPPING.replace("else m.content", "else m.content | trim"), None),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "template", "missing"), RENDERED.values(), ids=RENDERED)
def test_load_split_counts_what_the_template_does_not_write(
    read, tokenizer, kind, row, template, missing
):
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = template
    write_jsonl(Path("rows.jsonl"), [row])
    split = read("rows.jsonl", kind=kind, tokenizer=templated)
    notes = [f.note for f in split.findings if f.name == "not_rendered"]
    assert notes == ([] if missing is None else [missing])
    renamed = "1 rows: thinking of messages was passed to the chat template as reasoning"
    assert (renamed in split.notes) == (template == READS_REASONING and kind == "pair")


def test_load_split_identical_pairs_are_divided_by_cause(read, tokenizer):
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = STRIPPING
    thoughts = [{"role": "assistant", "content": f"<think>{t}</think> good"} for t in "xy"]
    long = [{"role": "assistant", "content": "x" * 99 + end} for end in "ab"]
    sides = [(A, A), thoughts, (A, B), long, ({**A, "name": "f"}, {**A, "name": "g"})]
    rows = [{"prompt": [U], "chosen": [c], "rejected": [r]} for c, r in sides]
    write_jsonl(Path("rows.jsonl"), rows)
    split = read("rows.jsonl", tokenizer=templated)
    assert {reason: t.rows for reason, t in split.dropped.items()} == {
        "chosen and rejected are identical": "rows.jsonl: row 1",
        "chosen and rejected are identical once the chat template is applied": "rows.jsonl: row 2, row 5",
        "chosen and rejected are identical after the cut at max_length": "rows.jsonl: row 4",
    }
    names = {f.name: f.count for f in split.findings}
    assert names["identical_tokens"] == 2
    assert names["identical"] == names["identical_after_cut"] == 1


# --- what the rows say about themselves

SCORED = {
    # id: (columns of four rows, contradictions, ties)
    "score_chosen": ([{"score_chosen": c, "score_rejected": r} for c, r in [(2, 1), (1, 2.5), (3, 3), (0, 9)]], 2, 1),
    "chosen-rating": ([{"chosen-rating": c, "rejected-rating": r} for c, r in [(5, 1)] * 4], 0, 0),
    "chosen_score, missing": ([{"chosen_score": c, "rejected_score": 1.0} for c in (None, 1, 2, 0.5)], 1, 1),
    "no numbers": ([{"chosen_model": "a", "rejected_model": "a"}] * 4, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "contradictions", "ties"), SCORED.values(), ids=SCORED)
@pytest.mark.parametrize("pair", [PAIR, CHAT_PAIR], ids=["text", "messages"])
def test_load_split_counts_scores_against_the_preference(read, columns, contradictions, ties, pair):
    write_jsonl(Path("rows.jsonl"), [{**pair, **scores} for scores in columns])
    split = read("rows.jsonl")
    counts = {f.name: f.count for f in split.findings}
    assert counts.get("score_contradictions", 0) == contradictions
    assert counts.get("score_ties", 0) == ties
    assert "unread" not in counts


def test_load_split_swapped_sides_are_an_error(read):
    write_jsonl(Path("rows.jsonl"), [{**PAIR, "score_chosen": 1, "score_rejected": 2}] * 3)
    findings = [f for f in read("rows.jsonl").findings if f.name == "score_contradictions"]
    _, (error,) = judge({"train": findings}, DataChecks())
    assert "chosen has a lower score than rejected" in str(error)
    assert "columns: {chosen: rejected, rejected: chosen}" in str(error)


USER_TURNS = {
    # id: (kind, row, counted)
    "chat side": ("pair", {**CHAT_PAIR, "chosen": [A, U, A]}, 1),
    "kto": ("labelled", {"prompt": [U], "completion": [A, U, A], "label": True}, 1),
    "sft": ("demonstration", {"prompt": [U], "completion": [A, U, A]}, 1),
    "text side": ("pair", {**PAIR, "rejected": " no\n\nHuman: why?"}, 1),
    "tool turns": ("pair", {**CHAT_PAIR, "chosen": [A, RESULT, A]}, 0),
    "prompt": ("pair", {**CHAT_PAIR, "prompt": [U, A, U]}, 0),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "count"), USER_TURNS.values(), ids=USER_TURNS)
def test_load_split_counts_user_turns_in_answers(read, kind, row, count):
    write_jsonl(Path("rows.jsonl"), [row])
    counts = {f.name: f.count for f in read("rows.jsonl", kind=kind).findings}
    assert counts.get("user_turns", 0) == count


# --- what is not read

UNREAD = {
    # id: (kind, row, {what: its example})
    "text pair, system": ("pair", {**PAIR, "system": "Be brief."}, {"system": "text 'Be brief.'"}),
    "text pair, context": ("pair", {**PAIR, "context": "a b"}, {"context": "text 'a b'"}),
    "chat pair, image": ("pair", {**CHAT_PAIR, "image": "a.png"}, {"image": "text 'a.png'"}),
    "text, sample weight": ("demonstration", {"text": "a", "weight": 0.5}, {"weight": "float 0.5"}),
    "pairs, context in an answer only": ("pair", {**PAIR, "context": " good"}, {"context": "text ' good'"}),
    "sft, weighted turn": ("demonstration", {"messages": [U, {**A, "weight": 0.5}, U, A]}, {"weight of a message": "float 0.5"}),
    "pair, margin": ("pair", {**CHAT_PAIR, "margin": 2}, {"margin": "int 2"}),
    "kto, input": ("labelled", {**LABELLED, "input": "x"}, {"input": "text 'x'"}),
    "kto, audio": ("labelled", {"prompt": [U], "completion": [{**A, "audio": "a.wav"}], "label": True}, {"audio of a message": "text 'a.wav'"}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "expected"), UNREAD.values(), ids=UNREAD)
def test_load_split_counts_unread_values(read, kind, row, expected):
    write_jsonl(Path("rows.jsonl"), [row, {**row, "id": 3}, row])
    split = read("rows.jsonl", kind=kind)
    finding = next(f for f in split.findings if f.name == "unread")
    assert finding.count == 3
    assert finding.note == ", ".join(f"{n} in 3 (such as {e})" for n, e in expected.items())
    assert split.notes[-1] == "not read: id in 1 (such as int 3)"
    _, (error,) = judge({"train": [finding]}, DataChecks())
    assert finding.note in str(error)
    assert "data.checks.unread.error" in str(error)


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "system": None, "input": " ", "images": [], "weight": 1.0},
        {**PAIR, "prompt": "Given a b, say c", "context": "a b"},
        {"messages": [{**U, "weight": 1}, {**A, "train": True, "images": None, "name": ""}]},
    ],
    ids=["empty or neutral", "part of the prompt", "messages"],
)
def test_load_split_values_without_effect_are_silent(read, row):
    write_jsonl(Path("rows.jsonl"), [row] * 3)
    split = read("rows.jsonl", kind="pair" if "prompt" in row else "demonstration")
    assert "unread" not in {f.name for f in split.findings}
    assert split.notes == []


def test_load_split_of_more_files_than_may_be_open(read, tmp_path):
    """A memory-mapped file counts as an open one."""
    (tmp_path / "many").mkdir()
    for number in range(200):
        write_jsonl(tmp_path / "many" / f"{number:03}.jsonl", [{**PAIR, "prompt": f"q {number}"}])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 120, hard))
    try:
        split = read("many")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert split.rows["prompt"][:] == [f"q {number}" for number in range(200)]


def test_load_split_template_that_does_not_end_for_a_row_names_it(read, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenization, "TEMPLATE_SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    looping = copy.deepcopy(tokenizer)
    looping.chat_template = (
        "{% if 'loop' in messages[0].content %}" + endless + "{% endif %}" + TEMPLATE
    )
    loop = {**CHAT_PAIR, "prompt": [{**U, "content": "loop"}]}
    write_jsonl(Path("rows.jsonl"), [CHAT_PAIR, loop])
    with pytest.raises(
        DataError, match=r"rows.jsonl: row 2: .* does not end within 0.3 s"
    ) as caught:
        read("rows.jsonl", tokenizer=looping)
    assert caught.value.problems[0].code == "DAT017"


def test_load_split_of_many_rows_reports_its_progress(read, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 0.0)
    write_jsonl(Path("rows.jsonl"), [PAIR] * 3)
    read("rows.jsonl")
    assert capsys.readouterr().out.splitlines() == [
        "data.train: rows.jsonl: 1 of 3 rows, 0:00:00 left",
        "data.train: rows.jsonl: 2 of 3 rows, 0:00:00 left",
    ]


def test_load_run_datasets_kto_with_one_label_raises(recipe_data, make_recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [LABELLED] * 4)
    recipe_data["data"]["train"] = {"path": str(path)}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(DataError, match="all labels are true"):
        load_run_datasets(recipe, recipe.methods["kto"], load_tokenizer(recipe.model))
    # Half of the labels are 1 and -1.
    rows = [{**LABELLED, "label": label} for label in (1, -1, 1, -1)]
    write_jsonl(path, rows)
    with pytest.raises(DataError, match=r"all valid labels are true, .*found int -1") as caught:
        load_run_datasets(recipe, recipe.methods["kto"], load_tokenizer(recipe.model))
    assert caught.value.problems[0].code == "DAT016"


def test_load_split_text_and_message_sources_raise(read):
    write_jsonl(Path("text.jsonl"), [PAIR])
    write_jsonl(Path("chat.jsonl"), [CHAT_PAIR])
    with pytest.raises(DataError) as caught:
        read("text.jsonl", "chat.jsonl")
    check(
        caught,
        DataError,
        "chat.jsonl",
        "DAT013",
        "prompt (messages) | but prompt (text) | only sources of text",
    )


def test_load_split_messages_without_template_raise(read, tiny_model):
    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.chat_template = None
    write_jsonl(Path("rows.jsonl"), [CHAT_PAIR])
    with pytest.raises(PrefcliError) as caught:
        read("rows.jsonl", tokenizer=bare)
    check(caught, RecipeError, None, "MDL016", "rows.jsonl has messages | name a .jinja file")
    assert caught.value.problems[0].path == "model.chat_template"


@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ m.role + 1 }}", "can only concatenate str"),
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
    ids=["raises", "type", "undefined", "arithmetic"],
)
@pytest.mark.parametrize("num_proc", [None, 2])
def test_load_split_template_failure_names_the_row(read, tiny_model, failing, reason, num_proc):
    strict = AutoTokenizer.from_pretrained(tiny_model)
    strict.chat_template = (
        "{% for m in messages %}{% if m.content == 'no' %}"
        + failing
        + "{% endif %}{% endfor %}"
        + TEMPLATE
    )
    bad = {**CHAT_PAIR, "prompt": [{"role": "user", "content": "no"}]}
    write_jsonl(Path("rows.jsonl"), [*[CHAT_PAIR] * 4, bad, CHAT_PAIR])
    with pytest.raises(PrefcliError) as caught:
        read("rows.jsonl", tokenizer=strict, num_proc=num_proc)
    check(
        caught,
        DataError,
        "rows.jsonl: row 5",
        "DAT017",
        f"the chat template fails on this row: {reason} | model.chat_template",
    )


CSV = {
    "too few cells": ("prompt,chosen,rejected\nq,a,b\nq,a\n", "rows.csv: row 2", "DAT001", "found 2 cells; expected 3 | prompt, chosen, rejected"),
    "too many cells": ("prompt,chosen,rejected\nq,a, b, c\n", "rows.csv: row 1", "DAT001", "found 4 cells; expected 3 | quote text that contains commas"),
    "open quote": ('prompt,chosen,rejected\nq,a,b\nq,"a,b\n', "rows.csv: row 2", "DAT001", "not CSV: unexpected end of data"),
    "only a header": ("prompt,chosen,rejected\n", "rows.csv", "DAT002", "the source has no rows"),
    "a column twice": ("prompt,prompt,chosen\na,b,c\n", "rows.csv", "DAT001", "the column 'prompt' twice"),
    "semicolons": ("prompt;chosen;rejected\nq;a;b\n", "rows.csv", "DAT011", "found columns prompt;chosen;rejected"),
    "not UTF-8": ("prompt,chosen,rejected\né,a,b\n", "rows.csv", "DAT001", "the byte 0xe9, which is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "place", "code", "phrases"), CSV.values(), ids=CSV)
def test_load_split_invalid_csv_raises_data_error(read, content, place, code, phrases):
    Path("rows.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(PrefcliError) as caught:
        read("rows.csv")
    check(caught, DataError, place, code, phrases)


def test_load_split_csv_label_text_raises(read):
    Path("rows.csv").write_text("prompt,completion,label\nq,b,yes\n", "utf-8")
    with pytest.raises(
        DataError, match="row 1: found text 'yes' in 'label'; expected true or false"
    ):
        read("rows.csv", kind="labelled")


@pytest.mark.parametrize(
    "content", [b"no parquet", b"PAR1" + b"\0" * 64 + b"PAR1"], ids=["text", "zeros"]
)
def test_load_split_invalid_parquet_raises(read, content):
    Path("rows.parquet").write_bytes(content)
    with pytest.raises(PrefcliError) as caught:
        read("rows.parquet")
    check(caught, DataError, "rows.parquet", "DAT001", "can't read the Parquet file")


def test_load_split_parquet_types_are_checked(read):
    def parquet(**columns):
        pq.write_table(
            pa.table({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"], **columns}),
            "rows.parquet",
        )
        return "rows.parquet"

    assert plain(read(parquet(chosen=pa.array(["a"]).dictionary_encode()))) == [
        {**PAIR, "chosen": "a", "rejected": "b"}
    ]
    assert plain(read(parquet(chosen=pa.array(["a"], pa.large_string()), other=[{"x": [1]}])))
    for column in ([1.5], [b"a"], pa.array([None]), pa.array([0], pa.timestamp("s")), [[1]]):
        with pytest.raises(
            DataError, match=r"rows.parquet: row 1: found .* in 'rejected'.*; expected"
        ):
            read(parquet(rejected=column))


def test_load_split_damaged_saved_dataset_raises(read):
    Dataset.from_list([PAIR]).save_to_disk("saved")
    next(Path("saved").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(PrefcliError) as caught:
        read("saved")
    check(caught, DataError, "saved", "DAT001", "can't read the saved dataset")


SOURCES = {
    # id: (source, path in the recipe, code (with or without a network), phrases)
    "missing file": ({"path": "rows.jsno"}, "data.train.path", "DAT003 or DAT008", "rows.jsno | did you mean rows.jsonl?"),
    "missing file, dot": ({"path": "./row.jsonl"}, "data.train.path", "DAT003", "no such file or folder: ./row.jsonl | did you mean rows.jsonl?"),
    "missing folder": ({"path": "dta/rows.jsonl"}, "data.train.path", "DAT003", "no such file or folder | the folder dta does not exist either | relative to the working directory"),
    "unknown suffix": ({"path": "rows.xlsx"}, "data.train.path", "DAT004", "can't read .xlsx files | .jsonl, .json, .parquet, .csv"),
    "no suffix": ({"path": "./rows"}, "data.train.path", "DAT004", "a file without a suffix | convert it"),
    "folder without data": ({"path": "empty"}, "data.train.path", "DAT003", "empty has no data files | .jsonl"),
    "no such data_files": ({"path": "folder", "data_files": "c.jsonl"}, "data.train.data_files", "DAT003", "no such files in folder: c.jsonl | did you mean b.jsonl?"),
    "no such data_files, far": ({"path": "folder", "data_files": "*.zip"}, "data.train.data_files", "DAT003", "no such files | it has a/x.jsonl, b.jsonl"),
    "split of a file": ({"path": "rows.jsonl", "split": "test"}, "data.train.split", "DAT005", "a single file has no split 'test' | train[:1000]"),
    "split of a folder": ({"path": "folder", "data_files": "b.jsonl", "split": "trian"}, "data.train.split", "DAT005", "no split 'trian' in folder; it has train | did you mean train?"),
    "split of a saved dataset": ({"path": "saved", "split": "dev"}, "data.train.split", "DAT005", "no split 'dev' in saved; it has train"),
    "no slice": ({"path": "rows.jsonl", "split": "train[:abc]"}, "data.train.split", "DAT005", "'train[:abc]' is not a valid split | train[:1000]"),
    "splits joined": ({"path": "rows.jsonl", "split": "train+test"}, "data.train.split", "DAT005", "'train+test' is not a valid split | list them as sources"),
    "empty slice": ({"path": "rows.jsonl", "split": "train[2:1]"}, "data.train.split", "DAT005", "train[2:1] selects none of the 3 rows"),
    "slice past the end": ({"path": "rows.jsonl", "split": "train[7:]"}, "data.train.split", "DAT005", "train[7:] selects none of the 3 rows"),
    "name of a file": ({"path": "rows.jsonl", "name": "x"}, "data.train.name", "DAT006", "name has no effect on a single file | remove it"),
    "revision of a folder": ({"path": "folder", "revision": "x"}, "data.train.revision", "DAT006", "revision has no effect on a folder"),
    "data_files of a saved dataset": ({"path": "saved", "data_files": "x"}, "data.train.data_files", "DAT006", "no effect on a saved dataset"),
    "missing column": ({"path": "rows.jsonl", "columns": {"chosen": "chosn"}}, "data.train.columns.chosen", "DAT009", "no column 'chosn' in rows.jsonl; it has prompt, chosen, rejected | did you mean chosen?"),
    "hub": ({"path": "no-owner/nothing"}, "data.train.path", "DAT003 or DAT008", "no-owner/nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "path", "code", "phrases"), SOURCES.values(), ids=SOURCES)
def test_load_split_invalid_source_raises_recipe_error(read, source, path, code, phrases):
    write_jsonl(Path("rows.jsonl"), [PAIR] * 3)
    for name in ("rows.xlsx", "rows"):
        Path(name).write_bytes(b"x")
    Path("empty").mkdir()
    Path("folder/a").mkdir(parents=True)
    write_jsonl(Path("folder/a/x.jsonl"), [PAIR])
    write_jsonl(Path("folder/b.jsonl"), [PAIR])
    Dataset.from_list([PAIR]).save_to_disk("saved")
    with pytest.raises(PrefcliError) as caught:
        read(source)
    check(caught, RecipeError, None, code, phrases)
    assert caught.value.problems[0].path == path


def test_load_split_error_names_the_source_of_a_list(read):
    write_jsonl(Path("rows.jsonl"), [PAIR])
    with pytest.raises(RecipeError) as caught:
        read("rows.jsonl", {"path": "rows.jsonl", "columns": {"prompt": "x", "chosen": "y"}})
    assert [p.path for p in caught.value.problems] == [
        "data.train[1].columns.prompt",
        "data.train[1].columns.chosen",
    ]


ASSISTANT_ONLY = {"assistant_only_loss": True}


def test_split_counts_rows_without_trained_assistant_token(recipe_data, make_recipe, tmp_path):
    """trl drops such rows silently."""
    long = [{"role": "user", "content": "red " * 60}, {"role": "assistant", "content": "yes"}]
    short = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "yes"}]
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": m} for m in (short, long, short)])
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": str(data)}, "max_length": 32}
    recipe_data["sft"] = ASSISTANT_ONLY
    recipe = make_recipe(recipe_data).recipe
    _, inputs = trainer_of(recipe, "sft")
    assert inputs.train.as_dict()["dropped"] == {"no assistant token within max_length": 1}


def test_load_run_datasets_assistant_only_needs_messages_and_markers(
    recipe_data, make_recipe, tmp_path
):
    recipe_data["sft"] = ASSISTANT_ONLY
    text = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="the rows are text"):
        load_run_datasets(text, text.sft, load_tokenizer(text.model))
    data = write_jsonl(tmp_path / "chat.jsonl", pairs(4, chat=True))
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": str(data)}, "max_length": 32}
    recipe_data["model"]["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="does not mark assistant turns"):
        load_run_datasets(chat, chat.sft, load_tokenizer(chat.model))


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_measure_row_merged_tokens_above_limit_drops_row(recipe_data, make_recipe, name):
    recipe = make_recipe(recipe_data).recipe
    method = recipe.methods[name]
    assert method.trainer.max_merged_tokens == 1
    tokenizer = load_tokenizer(recipe.model)
    row = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4], "merged_tokens": 2}
    assert "merge" in measure_row([row], Limits(64, max_merged_tokens=1), chat=False)["drop"]
    assert measure_row([row], Limits(64, max_merged_tokens=1), chat=True)["drop"] is None
    assert measure_row([row], Limits(64), chat=False)["drop"] is None
    assert load_run_datasets(recipe, method, tokenizer).train.dropped == {}


def test_load_split_row_of_many_megabytes_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("prefcli.data.readers.MAX_LINE", 200)
    rows = write_jsonl(tmp_path / "rows.jsonl", [*pairs(3), {**pairs(1)[0], "chosen": "a" * 300}])
    with stops_with("DAT010") as caught:
        load_split(
            [Source(path=str(rows))], "data.train", "pair", tokenizer, limits=Limits(64), seed=0
        )
    assert "rows.jsonl: row 4" in str(caught.value)


def test_kto_drops_a_single_last_row(recipe_data, make_recipe, tmp_path):
    """Such a row would be paired with its own completion, which does not estimate the KL."""
    rows = [{"prompt": f"p{i}", "completion": f" c{i}", "label": i % 2 == 0} for i in range(9)]
    recipe_data["data"] = {
        "checks": ANYTHING,
        "train": {"path": str(write_jsonl(tmp_path / "t.jsonl", rows))},
        "eval": {"path": str(write_jsonl(tmp_path / "e.jsonl", rows[:5]))},
        "max_length": 64,
        "num_proc": 2,  # trl would cut the rows elsewhere than the batches do
    }
    recipe = make_recipe(recipe_data).recipe
    inputs = load_run_datasets(recipe, recipe.kto, load_tokenizer(recipe.model))
    assert (len(inputs.train.rows), len(inputs.eval.rows)) == (8, 4)
    assert sum(d.count for d in inputs.train.dropped.values()) == 1
    assert any(
        "row dropped: single row in the last device batch of 4" in x for x in inputs.train.lines()
    )
    trainer, _ = trainer_of(recipe, "kto")
    for start in (0, 4):
        rows = [trainer.train_dataset[i] for i in range(start, start + 4)]
        for i, row in enumerate(rows):
            assert row["KL_completion_ids"] == rows[i - 1]["completion_ids"]
            assert row["KL_completion_ids"] != row["completion_ids"]
    without = make_recipe(recipe_data, "kto.loss_type=apo_zero_unpaired").recipe
    datasets = load_run_datasets(without, without.kto, load_tokenizer(without.model))
    assert len(datasets.train.rows) == 9


def test_kto_raises_if_the_dropped_row_had_the_other_label(recipe_data, make_recipe, tmp_path):
    """The only undesirable row is the one that is dropped."""
    rows = [{"prompt": f"p{i}", "completion": f" c{i}", "label": i > 0} for i in range(9)]
    path = str(write_jsonl(tmp_path / "t.jsonl", rows))
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": path}, "max_length": 64}
    outcomes = set()
    for seed in range(12):
        recipe = make_recipe(recipe_data, f"seed={seed}").recipe
        try:
            trainer_of(recipe, "kto")
            outcomes.add("both labels")
        except DataError as error:
            outcomes.add(error.problems[0].code)
    assert outcomes == {"both labels", "DAT016"}
