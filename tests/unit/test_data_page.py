"""The data audit as a page and as text, from plain dicts, without torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefcli.report.data_page import data_page, text_histograms
from tests.support.pages import read

LENGTHS = {
    "quantiles": {
        "prompt": {"p50": 3, "p90": 4, "p99": 4, "max": 4},
        "row": {"p50": 9, "p90": 16, "p99": 20, "max": 20},
    },
    "max_length": 16,
    "max_length_for_99_percent": 20,
    "histogram": {
        "room": 16,
        "ends": [8, 16, 20],
        "rows": {"prompt": [8, 0, 0], "row": [3, 4, 1]},
    },
}
FITTING = {
    **LENGTHS,
    "max_length": 64,
    "histogram": {"room": 64, "ends": [1, 3], "rows": {"row": [1, 16]}},
}
SPLIT = {
    "read": 1234,
    "available": 1234,
    "kept": 1230,
    "tokens": 9,
    "dropped": {"empty chosen": 4},
    "findings": {
        "cut": {
            "count": 12,
            "of": 1234,
            "share": 12 / 1234,
            "first": ["<b>.jsonl: row 1"],
            "note": "",
            "what": "a completion is cut at max_length",
            "where": "<b>.jsonl: row 1",
            "level": "note",
        }
    },
    "lengths": LENGTHS,
    "notes": [],
}
DOCUMENT = {
    "exit_code": 4,
    "problems": [
        {
            "code": "DAT001",
            "message": "train: <empty>",
            "place": None,
            "path": None,
            "hint": "fill it",
        }
    ],
    "warnings": [],
    "recipe": "r.yaml",
    "method": "dpo",
    "model": "m",
    "sampled": False,
    "checks": ["cut", "empty", "no_end"],
    "method_notes": [],
    "splits": {"train": SPLIT, "eval": {**SPLIT, "lengths": FITTING, "findings": {}}},
}


def test_text_histograms_are_side_by_side():
    assert text_histograms(LENGTHS, ascii_only=True) == [
        "tokens  prompt            row",
        "   0-8  ######## 8        ###### 3",
        "  9-16                    ######## 4",
        "        -- max_length 16 -----------------",
        " 17-20                    ## 1",
    ]


def test_text_histograms_with_unicode_use_eighths():
    assert text_histograms(FITTING, ascii_only=False) == [
        "tokens  row",
        "   0-1  ▌ 1",
        "   2-3  ████████ 16",
        "        ── max_length 64 ──",
    ]


@pytest.mark.parametrize("lengths", [LENGTHS, FITTING], ids=["cut", "fitting"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_text_histograms_fit_80_columns(lengths, ascii_only):
    assert max(map(len, text_histograms(lengths, ascii_only=ascii_only))) < 80


def test_data_page_is_self_contained():
    page = data_page(DOCUMENT)
    read(page)
    assert "http" not in page
    assert page.count("<svg") == 2 + 1
    assert "Checks without a finding: empty, no_end." in page
    assert "verdict good" not in page


def test_data_page_escapes_its_text():
    page = data_page(DOCUMENT)
    assert "train: &lt;empty&gt;" in page
    assert "first: &lt;b&gt;.jsonl: row 1" in page


def test_data_page_hides_secrets_and_escapes_control_characters():
    """Findings and notes show values and column names of the rows."""
    note = "unread: a\x1b[31mb in 3 (such as text 'hf_abcdefghijklmnopqrstuvwx \u202e<script>')"
    finding = {**SPLIT["findings"]["cut"], "note": note, "where": "\x9b.jsonl: row 1"}
    warning = {"code": "DAT014", "message": note, "hint": note}
    split = {**SPLIT, "findings": {"cut": finding}, "notes": [note], "dropped": {note: 1}}
    page = data_page({**DOCUMENT, "warnings": [warning], "splits": {"train": split}})
    read(page)
    assert page.count("(hidden)") == 5
    assert "hf_abc" not in page
    assert page.count(r"a\x1b[31mb") == 5
    assert not {"\x1b", "\x9b", "\u202e"} & set(page)
    assert "<script>" not in page.partition("<body")[2].replace("(hidden)", "")


def test_data_page_shows_findings_and_lengths():
    page = data_page(DOCUMENT)
    assert "12 of 1,234 rows (0.972 %): a completion is cut at max_length" in page
    assert "max_length 16" in page
    assert "prompt, 0-8 tokens: 8 rows" in page


def test_data_page_shows_rows_of_findings_and_cuts_long_texts():
    row = SimpleNamespace(
        place="<b>.jsonl: row 1", texts={"prompt": "Why <i>?", "chosen": "word " * 200}
    )
    rows = {"train": SimpleNamespace(first=[row], findings={"cut": [row]}, dropped={})}
    page = data_page(DOCUMENT, rows)
    read(page)
    assert page.count("Why &lt;i&gt;?") == 2
    assert page.count(" more characters") == 2
    assert page.index("Show 1 row") < page.index("First rows")


@pytest.mark.parametrize("sampled", [True, False])
def test_data_page_of_a_sample_says_so(sampled):
    assert ("a sample" in data_page({**DOCUMENT, "sampled": sampled})) is sampled


def test_data_page_of_the_same_data_is_the_same():
    assert data_page(DOCUMENT) == data_page(DOCUMENT)


PAIRS = {
    "models": ["reward = 0.1 x log(policy / reference)"],
    "pairs": 200,
    "trained_on": 7,
    "too_long": 0,
    "accuracy": 0.7,
    "label_noise": {"value": 0.2, "low": 0.15, "high": 0.25, "is_identified": True},
    "agreement": [{"margin": 0.5, "rows": 20, "agreement": 0.6, "expected": 0.61}],
    "kinds": {"contradicted": {"count": 12, "meaning": "the label is probably swapped"}},
}


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        ({}, "20 % of the labels are swapped"),
        ({"is_identified": False}, "between 15 % and 25 %, which says little"),
        ({"low": None, "high": None}, "too few pairs"),
    ],
)
def test_data_page_shows_judged_pairs_and_their_rows(noise, text):
    row = SimpleNamespace(place="a.jsonl: row 9", texts={"chosen": "a <b> c"})
    pairs = {**PAIRS, "label_noise": {**PAIRS["label_noise"], **noise}}
    page = data_page({**DOCUMENT, "pairs": pairs}, None, {"contradicted": [row]})
    read(page)
    assert text in page
    assert "a &lt;b&gt; c" in page
    assert "7 not judged" in page
    assert "What the pairs are worth" not in data_page(DOCUMENT)
