"""The data checks on crafted files: each fault is counted, located and judged as by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefcli import cli
from prefcli.data import Finding, Limits, judge, load_split
from prefcli.data.run_datasets import load_run_datasets, read_run_datasets
from prefcli.errors import DataError
from prefcli.methods import METHODS
from prefcli.model import load_tokenizer
from prefcli.recipe.sections import DataChecks, Source
from prefcli.training import run as run_module
from prefcli.training.run import train
from tests.support.judge import RLOO
from tests.support.pages import read
from tests.support.tiny_runs import write_jsonl


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# Each of the letters f, j, q, v, w, x and z is a token; the end token is one more.
CRAFTED = [
    *(pair("q" + "x" * i, "z", "zz") for i in range(1, 11)),  # 1-10: no fault
    pair("q", "", "v"),  # 11
    pair("q", "z", " "),  # 12
    pair("", "z", "v"),  # 13
    pair("qf", "z", "z"),  # 14
    pair("qff", "zz", "zz"),  # 15
    pair("w" * 16, "z", "vv"),  # 16: no room for a completion
    pair("w" * 40, "z", "vv"),  # 17
    pair("w" * 15, "z", "vv"),  # 18: both sides are cut
    pair("j", "z" * 20, "v"),  # 19: chosen is cut and longer
    pair("jj", "z", "v" * 20),  # 20: rejected is cut
    pair("jjj", "z" * 20, "z" * 21),  # 21: the same in the 13 tokens that fit
    pair("qx", "z", "zz"),  # 22: as 1
    pair("qxx", "z", "zz"),  # 23: as 2
    pair("qx", "z", "zz"),  # 24: as 1
    pair("jjjj", "zz", "v"),  # 25: chosen is longer
    pair("jjjjj", "zz", "v"),  # 26
    pair("q ", "red", "big"),  # 27: the space joins the words
    pair("qq ", "red", "big"),  # 28
    pair("f", "z", "zz"),  # 29: also in eval
    pair("ff", "z", "zz"),  # 30
]
HELD_OUT = [pair("f" * i, "v", "vv") for i in range(1, 5)]  # 1 and 2 are in train

# name: (count, of, first rows, remaining)
FINDINGS = {
    "long_prompts": (2, 30, [16, 17], 0),
    "cut": (3, 30, [18, 19, 20], 3),
    "identical": (2, 30, [14, 15], 0),
    "identical_after_cut": (1, 30, [21], 0),
    "empty": (3, 30, [11, 12, 13], 0),
    "duplicates": (3, 30, [22, 23, 24], 3),
    "chosen_longer": (3, 22, [19, 25, 26], 3),
    "prompt_boundary": (2, 30, [27, 28], 2),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def crafted(recipe_data, tmp_path, monkeypatch):
    """A recipe, as plain data, on the crafted rows with the default checks."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("train.jsonl"), CRAFTED)
    write_jsonl(Path("eval.jsonl"), HELD_OUT)
    recipe_data["data"] = {
        "train": {"path": "train.jsonl"},
        "eval": {"path": "eval.jsonl"},
        "max_length": 16,
    }
    return recipe_data


def audited(recipe, name, **options):
    return read_run_datasets(recipe, recipe.methods[name], load_tokenizer(recipe.model), **options)


def findings_of(split):
    """Return {name: (count, of, first rows, remaining)}."""
    return {
        f.name: (f.count, f.total, [int(p.rpartition(" ")[2]) for p in f.first], f.remaining)
        for f in split.findings
    }


def test_audit_pairs_counts_each_fault(crafted, make_recipe):
    inputs = audited(make_recipe(crafted).recipe, "dpo")
    train, held_out = inputs.train, inputs.eval
    assert (train.read, train.available, len(train.rows)) == (30, 30, 22)
    assert findings_of(train) == FINDINGS
    assert findings_of(held_out) == {"shared_prompts": (2, 4, [1, 2], 2)}
    notes = {f.name: f.note for f in train.findings if f.note}
    assert notes == {
        "cut": "chosen in 2, rejected in 2; max_length 43 cuts at most 1 %",
        # Tokens of the 22 remaining pairs: 15 of (2, 3), then rows 18, 19, 20, 25, 26, 27 and 28.
        "chosen_longer": f"on average {(15 * 2 + 2 + 21 + 2 + 3 + 3 + 2 + 2) / 22:.1f} and "
        f"{(15 * 3 + 3 + 2 + 21 + 2 + 2 + 2 + 2) / 22:.1f} tokens",
    }
    lines = train.lines()
    assert "train: 2 rows dropped: the prompt alone fills max_length " in lines[4] + lines[5]
    assert (
        "train: prompt_boundary: 2 of 30 rows (6.67 %): the prompt's last tokens merge with "
        "the completion; "
        "first: train.jsonl: row 27, row 28"
    ) in lines


def test_lengths_are_before_the_cut_and_include_dropped_rows(crafted, make_recipe):
    lengths = audited(make_recipe(crafted).recipe, "dpo").train.lengths.as_dict()
    assert lengths["quantiles"] == {
        "prompt": {"p50": 4, "p90": 15, "p99": 40, "max": 40},
        "chosen": {"p50": 2, "p90": 3, "p99": 21, "max": 21},
        "rejected": {"p50": 3, "p90": 3, "p99": 22, "max": 22},
        "row": {"p50": 8, "p90": 23, "p99": 43, "max": 43},
    }
    assert lengths["max_length_for_99_percent"] == 43
    histogram = lengths["histogram"]
    assert histogram["ends"] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 43]
    assert histogram["rows"]["row"] == [0, 3, 6, 4, 2, 2, 2, 0, 1, 1, 1, 3]
    assert all(sum(counts) == 25 for counts in histogram["rows"].values())


def test_lengths_without_long_rows_end_the_histogram_at_the_longest(crafted, make_recipe):
    lengths = audited(make_recipe(crafted, "data.max_length=64").recipe, "dpo").train.lengths
    assert lengths.enough == 43
    assert lengths.as_dict()["histogram"]["ends"] == [*range(4, 43, 4), 43]


def test_load_run_datasets_default_limits_report_all_errors_at_once(crafted, make_recipe):
    recipe = make_recipe(crafted).recipe
    with pytest.raises(DataError) as caught:
        load_run_datasets(recipe, recipe.dpo, load_tokenizer(recipe.model))
    problems = {p.path: p for p in caught.value.problems}
    assert list(problems) == [
        f"data.checks.{name}.error"
        for name in ("long_prompts", "identical", "empty", "prompt_boundary", "shared_prompts")
    ]
    message = problems["data.checks.shared_prompts.error"].message
    assert message.startswith("eval: shared_prompts: 2 of 4 rows (50 %, more than 1 %): ")
    assert message.endswith("; first: eval.jsonl: row 1, row 2")
    hint = problems["data.checks.empty.error"].hint
    assert hint.endswith("; or allow it with data.checks.empty.error=0.1")
    assert {problem.code for problem in problems.values()} == {"DAT014"}


def test_load_run_datasets_without_error_limits_warns(crafted, make_recipe):
    errors = [f"data.checks.{name}.error=null" for name in DataChecks.model_fields]
    recipe = make_recipe(crafted, *errors).recipe
    inputs = load_run_datasets(recipe, recipe.dpo, load_tokenizer(recipe.model))
    warnings = [warning.partition(" of the rows")[0] for warning in inputs.warnings]
    assert warnings == [
        "train: long_prompts: 6.67 %",
        "train: cut: 10 %",
        "train: identical: 6.67 %",
        "train: identical_after_cut: 3.33 %",
        "train: empty: 10 %",
        "train: duplicates: 10 %",
        "train: prompt_boundary: 6.67 %",
        "eval: shared_prompts: 50 %",
    ]
    cut = inputs.warnings[1]
    assert cut.startswith("train: cut: 10 % of the rows, more than 1 % [DAT014]\n    -> ")
    assert cut.endswith("; or allow it with data.checks.cut.warn=0.1")


@pytest.mark.parametrize("name", DataChecks.model_fields)
@pytest.mark.parametrize(
    ("error", "warn", "expected"),
    [
        (0.1, 0.1, (0, 0)),  # at the threshold
        (0.0999, 0.0, (0, 1)),
        (0.1001, 0.0999, (1, 0)),
        (None, 0.0, (1, 0)),
        (None, None, (0, 0)),
        (0.0, None, (0, 1)),
    ],
)
def test_judge_compares_share_with_limits(name, error, warn, expected):
    checks = DataChecks.model_validate({name: {"error": error, "warn": warn}})
    finding = Finding(name, 3, 30, ["a.jsonl: row 1"], 3)
    warnings, errors = judge({"train": [finding]}, checks)
    assert (len(warnings), len(errors)) == expected


def test_train_exceeded_limit_stops_before_loading_weights(crafted, make_recipe, monkeypatch):
    monkeypatch.setattr(run_module, "start_policy", lambda *args, **kwargs: pytest.fail("loaded"))
    recipe = make_recipe(crafted).recipe
    with pytest.raises(DataError, match="DAT014"):
        train(recipe, recipe.dpo)
    assert not (Path(recipe.output_dir) / "run.json").exists()


def test_train_prints_each_data_warning_once(crafted, make_recipe, capsys):
    errors = [f"data.checks.{name}.error=null" for name in DataChecks.model_fields]
    recipe = make_recipe(crafted, *errors, "training.max_steps=1").recipe
    train(recipe, recipe.dpo)
    out = capsys.readouterr().out
    assert out.count("warning: train: cut: 10 % of the rows") == 1
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["data"]["train"]["findings"]["cut"]["count"] == 3


# --- samples


def test_read_run_datasets_sample_is_drawn_with_the_seed(crafted, make_recipe):
    recipe = make_recipe(crafted).recipe

    def places(**changes):
        split = audited(recipe.model_copy(update=changes), "dpo", sample=12).train
        assert (split.read, split.available, split.is_sample) == (12, 30, True)
        assert split.read == len(split.rows) + sum(d.count for d in split.dropped.values())
        assert split.lines()[0].startswith("train: a sample of 12 of 30 rows read, ")
        return split.rows["_row"][:]

    assert places() == places() != places(seed=7)
    full = audited(recipe, "dpo", sample=30)
    assert not full.train.is_sample
    assert findings_of(full.train) == FINDINGS


def test_read_run_datasets_sample_counts_per_source_and_fraction(crafted, make_recipe):
    crafted["data"]["train"] = [
        {"path": "train.jsonl", "split": "train[:10]", "fraction": 0.5},
        {"path": "train.jsonl", "split": "train[28:]"},
    ]
    split = audited(make_recipe(crafted).recipe, "dpo", sample=3).train
    assert (split.read, split.available) == (3 + 2, 5 + 2)


# --- other kinds of rows


def test_audit_labelled_rows_counts_each_fault(crafted, make_recipe, tokenizer):
    rows = [{"prompt": "q" * i, "completion": "z" * i, "label": i % 3 == 0} for i in range(1, 13)]
    rows += [
        {"prompt": "q", "completion": "z", "label": True},  # 13: differs from 1 in its label
        {"prompt": "q", "completion": "z", "label": False},  # 14: as 1
        {"prompt": "j", "completion": "", "label": True},  # 15
        {"prompt": "w" * 16, "completion": "z", "label": True},  # 16
    ]
    write_jsonl(Path("train.jsonl"), rows)
    crafted["data"]["eval"] = {"path": "train.jsonl", "split": "train[:2]"}
    inputs = audited(make_recipe(crafted).recipe, "kto")
    assert findings_of(inputs.train) == {
        "long_prompts": (1, 16, [16], 0),
        # Prompt, completion and end: 2 * 8 + 1 are more than 16 tokens.
        "cut": (5, 16, [8, 9, 10], 5),
        "empty": (1, 16, [15], 0),
        "duplicates": (1, 16, [14], 1),
        "contradictions": (2, 16, [13, 14], 2),
    }
    assert findings_of(inputs.eval) == {"shared_prompts": (2, 2, [1, 2], 2)}
    assert inputs.train.as_dict()["labels"] == {"true": 5, "false": 9}
    assert list(inputs.train.lengths.tokens) == ["prompt", "completion", "row"]


def test_audit_pairs_for_kto_counts_pairs(crafted, make_recipe):
    split = audited(make_recipe(crafted).recipe, "kto").train
    assert findings_of(split) == FINDINGS | {"matched_neighbours": (12, 44, [7, 2, 8], 12)}
    assert list(split.lengths.tokens) == ["prompt", "chosen", "rejected", "row"]
    assert split.as_dict()["labels"] == {"true": 22, "false": 22}


def turns(*texts: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]}


def test_audit_conversations_share_the_messages_before_the_last_answer(crafted, make_recipe):
    write_jsonl(
        Path("train.jsonl"),
        [turns("q", "z"), turns("q", "z", "f", "v"), turns("q", "z"), turns("j", "z")],
    )
    write_jsonl(
        Path("eval.jsonl"),
        [turns("q", "x"), turns("q", "z", "f", "x"), turns("q", "v", "f", "x"), turns("z", "z")],
    )
    crafted["data"]["max_length"] = 64
    inputs = audited(make_recipe(crafted).recipe, "sft")
    assert findings_of(inputs.train) == {"duplicates": (1, 4, [3], 1)}
    assert findings_of(inputs.eval) == {"shared_prompts": (2, 4, [1, 2], 2)}
    assert list(inputs.train.lengths.tokens) == ["row"]


def test_audit_conversation_without_question_shares_only_equal_rows(crafted, make_recipe):
    def answer(text):
        return {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "assistant", "content": text},
            ]
        }

    write_jsonl(Path("train.jsonl"), [answer("q"), answer("z")])
    write_jsonl(Path("eval.jsonl"), [answer("x"), answer("z")])
    inputs = audited(make_recipe(crafted).recipe, "sft")
    assert findings_of(inputs.eval) == {"shared_prompts": (1, 2, [2], 1)}


def test_audit_texts_share_only_equal_texts(crafted, make_recipe):
    write_jsonl(Path("train.jsonl"), [{"text": t} for t in ("q", "qq", "q", "z" * 16)])
    write_jsonl(Path("eval.jsonl"), [{"text": t} for t in ("qqq", "qq", "j")])
    inputs = audited(make_recipe(crafted).recipe, "sft")
    assert findings_of(inputs.train) == {
        "cut": (1, 4, [4], 1),
        "duplicates": (1, 4, [3], 1),
    }
    assert findings_of(inputs.eval) == {"shared_prompts": (1, 3, [2], 1)}


def test_audit_template_with_other_generation_prompt_warns(crafted, make_recipe):
    crafted["model"]["chat_template"] = (
        "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a(f){% endif %}"
    )
    user, assistant = ({"role": r, "content": "q"} for r in ("user", "assistant"))
    row = {"prompt": [user], "completion": [assistant]}
    write_jsonl(Path("train.jsonl"), [row])
    crafted["data"] = {"train": {"path": "train.jsonl"}, "max_length": 32}
    recipe = make_recipe(crafted).recipe
    inputs = load_run_datasets(recipe, recipe.sft, load_tokenizer(recipe.model))
    (warning,) = inputs.warnings
    assert warning.startswith("train: template_boundary: 100 % of the rows, and none is expected")


def test_audit_duplicates_across_sources_are_counted(crafted, make_recipe):
    crafted["data"]["train"] = [
        {"path": "train.jsonl", "split": "train[:3]"},
        {"path": "train.jsonl", "split": "train[21:24]"},
    ]
    split = audited(make_recipe(crafted).recipe, "dpo").train
    assert findings_of(split) == {"duplicates": (3, 6, [22, 23, 24], 3)}


def test_audit_sft_mix_is_judged(crafted, make_recipe):
    crafted["data"]["train"] = {"path": "train.jsonl", "split": "train[:10]"}
    write_jsonl(Path("mix.jsonl"), [{"text": "q"}] * 3)
    crafted["sft_mix"] = {"data": {"path": "mix.jsonl"}}
    del crafted["data"]["eval"]
    recipe = make_recipe(crafted, "data.checks.duplicates.error=0.5").recipe
    with pytest.raises(DataError, match=r"sft_mix: duplicates: 2 of 3 rows \(66.7 %, more than 50"):
        load_run_datasets(recipe, recipe.dpo, load_tokenizer(recipe.model))


def test_load_split_row_check_findings_are_counted(crafted, tokenizer):
    """The findings of a row check are counted and located."""

    @dataclasses.dataclass
    class EvenPrompts:
        names: tuple[str, ...] = ("template_boundary",)
        cures: dict[str, str] = dataclasses.field(default_factory=dict)

        def __call__(self, ids, room, trained=None):
            return [] if len(ids["prompt_ids"]) % 2 else ["template_boundary"]

    sources = [Source(path="train.jsonl", split="train[:4]")]
    split = load_split(
        sources,
        "data.train",
        "pair",
        tokenizer,
        limits=Limits(16),
        seed=0,
        checks=[lambda chat: EvenPrompts()],
    )
    # The prompts have 2, 3, 4 and 5 tokens.
    assert findings_of(split) == {"template_boundary": (2, 4, [1, 3], 2)}


# --- any rows

quick = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
letters = st.text("qz ", max_size=12)


@quick
@given(
    rows=st.lists(st.builds(pair, letters, letters, letters), min_size=1, max_size=12),
    kind=st.sampled_from(["pair", "labelled", "demonstration"]),
    sample=st.sampled_from([None, 1, 5]),
)
def test_load_split_counts_all_rows(tmp_path_factory, tokenizer, rows, kind, sample):
    path = write_jsonl(tmp_path_factory.getbasetemp() / "any-pairs.jsonl", rows)
    try:
        split = load_split(
            [Source(path=str(path))], "data.train", kind, tokenizer,
            limits=Limits(8), seed=0, sample=sample,
        )  # fmt: skip
    except DataError as error:
        code = error.problems[0].code
    else:
        check_account(split, len(rows), kind, sample)
        return
    assert code == "DAT015"


def check_account(split, rows, kind, sample):
    remaining = len(split.rows) // (2 if kind == "labelled" else 1)
    assert split.read == min(rows, sample or rows)
    assert split.read == remaining + sum(tally.count for tally in split.dropped.values())
    for finding in split.findings:
        assert 0 < finding.count <= finding.total <= split.read
        assert 0 <= finding.remaining <= remaining
        assert len(finding.first) == min(finding.count, 3)


# --- the command


@pytest.fixture
def prefcli_data(tmp_path, monkeypatch, capsys):
    """Run `prefcli data recipe.yaml ...`: (exit code, standard output, standard error)."""

    def run(data: dict, *arguments: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["prefcli", "data", str(path), *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_data_command_prints_the_report_before_the_errors(crafted, prefcli_data):
    code, out, _ = prefcli_data(crafted, "--method", "dpo")
    assert code == 4
    lines = out.splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 5
    assert "recipe.yaml:" in lines[errors[0]]
    assert "train: 30 rows read, 22 kept" in lines[1]
    report = "\n".join(lines[: errors[0]])
    assert report.count(" max_length 16 ──") == 2  # a histogram of train, one of eval
    assert "warning: train: cut: 10 % of the rows" in report
    assert not Path(crafted["output_dir"]).exists()


@pytest.mark.parametrize("method", METHODS)
def test_data_command_valid_rows_report_no_problem(crafted, prefcli_data, method):
    if method == "rloo":
        crafted.update(RLOO | {"rloo": {"max_completion_length": 2}})
    crafted["data"]["train"]["split"] = "train[:8]"
    repeated = "data.checks.matched_neighbours.warn=null"  # the rows have few completions
    code, out, _ = prefcli_data(crafted, repeated, "--method", method)
    assert code == 0
    assert out.startswith(f"data of prefcli {method}: ")
    assert "error:" not in out
    assert "warning:" not in out
    assert ("kto: 8 desirable rows with weight 1" in out) == (method == "kto")


def test_data_command_needs_the_method_of_a_recipe_with_several(crafted, prefcli_data):
    crafted["data"]["train"]["split"] = "train[:8]"
    for method in METHODS:
        del crafted[method]
    assert "data of prefcli kto" in prefcli_data({**crafted, "kto": {}})[1]
    assert prefcli_data({**crafted, "kto": {}, "dpo": {}})[0] == 2
    assert prefcli_data({**crafted, "dpo": {}}, "--method", "kto")[0] == 2
    code, _, err = prefcli_data({**crafted, "dpo": {}}, "--method", "dppo")
    assert code == 2
    assert "RCP019" in err


def test_data_command_ascii_stream_prints_ascii(crafted, prefcli_data, monkeypatch):
    monkeypatch.setattr("prefcli.cli.data.prints_ascii_only", lambda: True)
    _, out, _ = prefcli_data(crafted, "--method", "dpo")
    assert out.isascii()
    assert "-- max_length 16 ---" in out
    assert "     5-6  ### 3             " in out


def test_data_command_json_is_one_document(crafted, prefcli_data):
    code, out, err = prefcli_data(crafted, "--method", "dpo", "--json", "--sample", "30")
    document = json.loads(out)
    assert code == document["exit_code"] == 4
    assert document["method"] == "dpo"
    assert document["sampled"] is False
    assert len(document["problems"]) == 5
    assert {w["path"] for w in document["warnings"]} == {None}
    assert document["splits"].keys() == {"train", "eval"}
    train = document["splits"]["train"]
    assert (train["read"], train["kept"], sum(train["dropped"].values())) == (30, 22, 8)
    assert train["findings"]["cut"] == {
        "count": 3,
        "of": 30,
        "share": 0.1,
        "first": [f"train.jsonl: row {row}" for row in (18, 19, 20)],
        "note": "chosen in 2, rejected in 2; max_length 43 cuts at most 1 %",
        "what": "a completion is cut at max_length",
        "where": "train.jsonl: row 18, row 19, row 20",
        "level": "warning",
    }
    assert {name: f["level"] for name, f in train["findings"].items()} == {
        "long_prompts": "error",
        "cut": "warning",
        "identical": "error",
        "identical_after_cut": "warning",
        "empty": "error",
        "duplicates": "warning",
        "chosen_longer": "note",
        "prompt_boundary": "error",
    }
    assert "error: " in err


def test_data_command_json_with_invalid_rows_is_one_document(crafted, prefcli_data):
    write_jsonl(Path("train.jsonl"), [pair("q", "z", "v"), {"prompt": "q", "chosen": 3}])
    code, out, _ = prefcli_data(crafted, "--method", "dpo", "--json")
    assert code == json.loads(out)["exit_code"] == 4


def test_data_command_html_is_written_despite_errors(crafted, prefcli_data):
    code, out, _ = prefcli_data(crafted, "--method", "dpo", "--html", "pages/data.html")
    assert code == 4
    assert "written to pages/data.html" in out
    page = Path("pages/data.html").read_text("utf-8")
    assert "http" not in page
    assert page.count("<svg") == 2 * 3
    assert "2 of 30 rows (6.67 %): the prompt&#39;s last tokens merge" in page
    text = " ".join(read(page).text.split())
    assert "First rows train.jsonl: row " in text
    for count, row in ((2, "Show the first 2 rows train.jsonl: row"), (1, "Show 1 row train")):
        assert text.count(row) >= count
    assert "zzz" in text

    code, out, err = prefcli_data(crafted, "--method", "dpo", "--html", "pages")
    assert code == 2
    assert "can't write pages: Is a directory" in err
    assert "rows read" not in out + err  # it was found before the audit


def test_audit_contradictions_count_rows_with_an_earlier_opposite(crafted, make_recipe):
    """Swapped pairs, also in another source, and flipped labels."""
    pair = {"prompt": "q", "chosen": " a", "rejected": " b"}
    swapped = {"prompt": "q", "chosen": " b", "rejected": " a"}
    one = write_jsonl(Path("one.jsonl"), [pair, {**pair, "prompt": "z"}, swapped, pair])
    two = write_jsonl(Path("two.jsonl"), [swapped])
    crafted["data"] = {"train": [{"path": str(one)}, {"path": str(two)}], "max_length": 64}
    split = audited(make_recipe(crafted).recipe, "dpo").train
    findings = {finding.name: finding for finding in split.findings}
    # Rows 3 and 4 of the first file and the row of the second have an earlier opposite.
    assert (findings["contradictions"].count, findings["contradictions"].total) == (3, 5)
    assert findings["contradictions"].first == [
        "one.jsonl: row 3",
        "one.jsonl: row 4",
        "two.jsonl: row 1",
    ]
    labels = [
        {"prompt": "q", "completion": " a", "label": True},
        {"prompt": "q", "completion": " b", "label": False},
        {"prompt": "q", "completion": " a", "label": False},
    ]
    write_jsonl(one, labels)
    crafted["data"]["train"] = {"path": str(one)}
    split = audited(make_recipe(crafted).recipe, "kto").train
    (finding,) = (f for f in split.findings if f.name == "contradictions")
    assert (finding.count, finding.first) == (1, ["one.jsonl: row 3"])


@pytest.mark.parametrize(("distinct", "expected"), [(1, 8), (2, None), (8, 0)])
def test_audit_kto_counts_neighbours_with_the_same_completion(
    crafted, make_recipe, distinct, expected
):
    rows = [
        {"prompt": "q" + "x" * i, "completion": "z" * (i % distinct + 1), "label": i % 2 > 0}
        for i in range(8)
    ]
    write_jsonl(Path("train.jsonl"), rows)
    crafted["data"] = {"train": {"path": "train.jsonl"}, "max_length": 32}
    crafted["training"] = {**crafted["training"], "per_device_train_batch_size": 4}
    split = audited(make_recipe(crafted, "training.global_batch_size=4").recipe, "kto").train
    counts = {f.name: (f.count, f.note) for f in split.findings}
    count, note = counts.get("matched_neighbours", (0, ""))
    if expected is not None:
        assert count == expected
    if count:
        assert note == f"{distinct} distinct completion" + "s"
