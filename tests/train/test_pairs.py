"""pairs: sampling, judges and their failures, stopped starts, rows as trainers read them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from prefcli.data import Limits, load_split
from prefcli.errors import DataError, InterruptedRunError, RecipeError
from prefcli.evaluation.judges import Completion, open_judge
from prefcli.evaluation.on_policy import check_pairs, make_pairs
from prefcli.evaluation.on_policy.pairing import Candidate, Drops, ScoredPrompt, make_rows
from prefcli.evaluation.on_policy.sampling import DrawPerRow
from prefcli.evaluation.scorers import RewardFormula, policy_scorer
from prefcli.model import load_tokenizer
from prefcli.recipe.sections import Judge, Pairs, Source
from tests.support.tiny_runs import pairs, write_jsonl


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# Which rows are made of scored completions.


def rows_of(scores, options: dict, lengths=None, texts=None) -> tuple[list[dict], Drops]:
    candidates = [
        Candidate(texts[i] if texts else f" t{i}", lengths[i] if lengths else 5, score=score)
        for i, score in enumerate(scores)
    ]
    drops = Drops()
    prompt = ScoredPrompt({"prompt": "p"}, candidates)
    return list(make_rows(prompt, Pairs.model_validate(options), 1, drops)), drops


@pytest.mark.parametrize(
    ("scores", "options", "lengths", "chosen", "rejected"),
    [
        ([1.0, 3.0, -2.0, 3.0], {}, None, " t1", " t2"),
        ([1.0, 3.0, -2.0, None], {"min_margin": 5.0}, None, " t1", " t2"),
        ([1.0, 3.0, -2.0], {"max_length_ratio": 1.5}, [4, 6, 20], " t1", " t0"),
        ([1.0, 1.0, 2.0], {"rule": "best_random", "min_margin": 1.0}, [1, 9, 1], " t2", None),
    ],
    ids=["best and worst", "margin", "similar length", "random"],
)
def test_make_rows_takes_the_pair_of_the_rule(scores, options, lengths, chosen, rejected):
    (row,), drops = rows_of(scores, options, lengths)
    assert row["chosen"] == chosen
    assert row["rejected"] == rejected or (rejected is None and row["rejected"] in (" t0", " t1"))
    assert row["chosen_score"] - row["rejected_score"] >= options.get("min_margin", 0)
    assert drops.prompts == {}
    assert drops.completions == ({"without a score": 1} if None in scores else {})


@pytest.mark.parametrize(
    ("scores", "options", "texts", "reason"),
    [
        ([1.0, 1.0], {}, None, "equal scores"),
        ([1.0, 1.5], {"min_margin": 1.0}, None, "no difference of at least pairs.min_margin"),
        ([1.0, 2.0], {}, [" a", " a"], "fewer than two distinct completions"),
        ([1.0, 2.0], {}, [" a", " "], "fewer than two distinct completions"),
        ([None, None], {}, None, "fewer than two distinct completions"),
        (
            [1.0, 2.0],
            {"kind": "best", "desirable_threshold": 3.0},
            None,
            "no score of at least pairs.desirable_threshold",
        ),
    ],
)
def test_make_rows_counts_a_prompt_without_rows(scores, options, texts, reason):
    rows, drops = rows_of(scores, options, texts=texts)
    assert rows == []
    assert drops.prompts == {reason: 1}


def test_make_rows_labels_by_thresholds_and_takes_the_best():
    scores = [2.0, 1.0, 0.0, -1.0]
    options = {"kind": "labels", "desirable_threshold": 2.0, "undesirable_threshold": 0.0}
    rows, drops = rows_of(scores, options)
    assert [(r["completion"], r["label"]) for r in rows] == [
        (" t0", True),
        (" t2", False),
        (" t3", False),
    ]
    assert drops.completions == {"between the thresholds": 1}
    rows, _ = rows_of(scores, {"kind": "labels", "desirable_threshold": 1.0})
    assert [row["label"] for row in rows] == [True, True, False, False]
    (row,), _ = rows_of(scores, {"kind": "best"})
    assert row == {"prompt": "p", "completion": " t0", "score": 2.0}


# Sampling.


def test_draw_per_row_has_the_probabilities_of_the_nucleus_and_ignores_other_rows():
    rows, logits = 4000, torch.tensor([2.0, 1.0, 0.0, -9.0, 1.5])
    expected = (logits / 0.7).softmax(-1)
    expected[[2, 3]] = 0.0  # the first three tokens have more than 0.9
    expected /= expected.sum()
    draw = DrawPerRow(range(rows), 2, temperature=0.7, top_p=0.9)
    first, second = (draw(None, logits.repeat(rows, 1)).argmax(-1) for _ in range(2))
    shares = torch.bincount(first, minlength=5) / rows
    assert torch.allclose(shares, expected, atol=0.03)
    assert not torch.equal(first, second)
    alone = DrawPerRow([7], 2, temperature=0.7, top_p=0.9)
    assert alone(None, logits[None]).argmax(-1) == first[7]


# Judges.

ROWS = [
    Completion("say red", f" text {i}", f"p.jsonl: row {i + 1}, completion 1") for i in range(4)
]
LOOP = """
import json, os, sys, time
for n, line in enumerate(sys.stdin):
    row = json.loads(line)
    if n == 2:
        {fault}
    print(json.dumps({{"id": row["id"], "score": n}}))
"""


def scores_of(recipe, judge: dict) -> dict[int, float | None]:
    with open_judge(recipe, Judge.model_validate(judge)) as opened:
        return dict(enumerate(opened.score_all(ROWS)))


@pytest.fixture(scope="module")
def recipe(tiny_model, tiny_pairs, tmp_path_factory):
    from prefcli.recipe import load
    from tests.support.tiny_runs import small_recipe

    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(tiny_model, folder, tiny_pairs)), "utf-8")
    return load(str(path), []).recipe


@pytest.mark.parametrize(
    ("fault", "code", "phrase"),
    [
        ("time.sleep(60)", "JDG003", "within 0.2 s"),
        ("sys.stdout.write('{'); sys.stdout.flush(); time.sleep(60)", "JDG003", "half a line, '{'"),
        (
            "sys.exit('no memory left')",
            "JDG002",
            "exit status 1.*; its .* ends with: no memory left",
        ),
        ("os.kill(os.getpid(), 9)", "JDG002", "killed by SIGKILL"),
        ("break", "JDG002", "exit status 0"),
        ("sys.stdout.write('{\"id\": 2, '); break", "JDG002", "after half a line"),
        ("print('ready')", "JDG004", "is not JSON: 'ready'"),
        ("print('5')", "JDG004", "is not an object with a score"),
        ('print(\'{"id": 7, "score": 1}\')', "JDG004", "not one of those waiting \\(2\\)"),
        ("n = float('nan')", "JDG005", "gave nan"),
        ("n = 'good'", "JDG005", "gave 'good'"),
    ],
)
def test_executable_that_fails_names_the_row(recipe, fault, code, phrase):
    command = [sys.executable, "-S", "-c", LOOP.format(fault=fault)]
    judge = {"executable": {"command": command, "timeout": 0.2}}
    with pytest.raises(RecipeError, match=f"(?s)row 3, completion 1: .*{phrase}") as error:
        scores_of(recipe, judge)
    (problem,) = error.value.problems
    assert problem.code == code
    assert "' text 2'" in problem.message


def test_executable_may_answer_several_rows_in_any_order_or_without_ids(recipe):
    pairs_of_lines = """
import json, sys
for line in sys.stdin:
    rows = [json.loads(line), json.loads(next(sys.stdin))]
    for row in reversed(rows):
        print(json.dumps({"id": row["id"], "score": int(row["completion"][-1]) or None}))
"""
    command = [sys.executable, "-S", "-c", pairs_of_lines]
    judge = {"executable": {"command": command, "concurrency": 2}}
    assert scores_of(recipe, judge) == {0: None, 1: 1.0, 2: 2.0, 3: 3.0}
    in_order = ["sh", "-c", "while read line; do echo '{\"score\": 1}'; done"]
    judge = {"executable": {"command": in_order, "concurrency": 3}}
    assert scores_of(recipe, judge) == dict.fromkeys(range(4), 1.0)
    with pytest.raises(RecipeError, match="JDG001"):
        scores_of(recipe, {"executable": {"command": ["./no-such-judge"]}})


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return [1 / (i - 2) for i in range(len(texts))]", "JDG006"),
        ("raise SystemExit(0)", "JDG006"),
        ("return [1.0]", "JDG007"),
        ("return None", "JDG007"),
        ("return dict.fromkeys(texts, 1.0)", "JDG007"),
        ("return [float('inf')] * len(texts)", "JDG005"),
        ("while True: pass", "JDG003"),
    ],
)
def test_function_that_fails_names_the_first_row(recipe, tmp_path, body, code):
    file = tmp_path / "rule.py"
    file.write_text(f"def rule(prompts, texts):\n    {body}\n", "utf-8")
    with pytest.raises(RecipeError, match="row 1, completion 1") as error:
        scores_of(recipe, {"function": {"name": f"{file}:rule", "timeout": 0.1}})
    assert error.value.problems[0].code == code
    with pytest.raises(RecipeError, match="JDG001"):
        scores_of(recipe, {"function": {"name": f"{file}:other"}})


def test_model_judges_give_the_rewards_of_score(recipe, tuned, run_folder, tiny_model, tmp_path):
    tokenizer = load_tokenizer(recipe.model)
    ids = [
        (tokenizer(r.prompt)["input_ids"], tokenizer(r.text + "</s>")["input_ids"]) for r in ROWS
    ]
    judge = {"implicit_reward": {"name_or_path": str(run_folder), "beta": 0.2}}
    with policy_scorer(recipe, str(tuned / "adapter"), RewardFormula(0.2, True, False)) as scorer:
        expected = [number["reward"] for number in scorer.score(ids)]
    assert list(scores_of(recipe, judge).values()) == expected
    with pytest.raises(RecipeError, match=r"judge\.implicit_reward.*MDL042"):
        scores_of(recipe, {"implicit_reward": {"name_or_path": str(tiny_model)}})
    folder = tmp_path / "reward"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scores = scores_of(recipe, {"reward_model": {"name_or_path": str(folder)}})
    # The tokenizer has a chat template, so that texts are turns.
    turns = [{"role": "user", "content": "say red"}, {"role": "assistant", "content": " text 3"}]
    row = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    assert scores[3] == pytest.approx(model(**row).logits.item(), abs=1e-5)


# The command.

RULE = """
def rule(prompts, texts):
    calls.append(len(texts))
    if sum(count > 2 for count in calls) in FAILS:  # the judge is tried on two texts
        raise list(FAILS.values())[0]
    return [len(text) % 5 for text in texts]

calls, FAILS = [], {}
"""


@pytest.fixture
def on_policy(recipe_data, make_recipe, tmp_path):
    """A recipe whose completions are judged by the function in rule.py."""
    (tmp_path / "rule.py").write_text(RULE, "utf-8")
    recipe_data["judge"] = {"function": {"name": f"{tmp_path / 'rule.py'}:rule"}}
    recipe_data["pairs"] = {"max_new_tokens": 6, "samples_per_prompt": 4, "unfinished": "keep"}
    recipe_data["pairs"]["batch_size"] = 16

    def make(*overrides: str, **section):
        recipe_data["pairs"] |= section
        return make_recipe(recipe_data, *overrides).recipe

    return make


def fail(folder, call: int, error: str) -> None:
    """Let the judge fail in one of its calls; 0: none."""
    text = f"{RULE}\nFAILS[{call}] = {error}\n" if error else RULE
    (folder / "rule.py").write_text(text, "utf-8")


def test_pairs_that_were_stopped_anywhere_continue_to_the_same_files(on_policy, tmp_path, capsys):
    recipe = on_policy(samples_per_prompt=10)
    plain, output = tmp_path / "plain.jsonl", tmp_path / "out.jsonl"
    summary = make_pairs(recipe, recipe.model, plain)
    assert (summary.prompts, summary.completions) == (10, 100)
    assert summary.speed.completions == 100
    fail(tmp_path, 2, "KeyboardInterrupt")
    with pytest.raises(InterruptedRunError, match="RUN103"):
        make_pairs(recipe, recipe.model, output)
    samples, scores = tmp_path / "out.samples.partial", tmp_path / "out.scores.partial"
    assert len(scores.read_text("utf-8").splitlines()) == 3  # settings, code, 64 scores
    sampled, judged = samples.read_bytes(), scores.read_bytes()
    fail(tmp_path, 0, "")
    ends = [(len(sampled), len(judged) - 9), (len(sampled) // 2, 0), (10, 0)]
    for sampled_end, judged_end in ends:
        samples.write_bytes(sampled[:sampled_end])
        scores.write_bytes(judged[:judged_end])
        again = make_pairs(recipe, recipe.model, output)
        # Batches of 16; the one that was cut is sampled again.
        assert again.speed.completions in {len(sampled): (0,), 10: (100,)}.get(
            sampled_end, (52, 68)
        )
        for suffix in (".jsonl", ".samples.jsonl"):
            assert output.with_suffix(suffix).read_bytes() == plain.with_suffix(suffix).read_bytes()
        assert not samples.exists()
        assert not scores.exists()
        output.unlink()
    # The scores of an earlier version of the judge stay, and the user knows.
    samples.write_bytes(sampled)
    scores.write_bytes(judged)
    (tmp_path / "rule.py").write_text(f"{RULE}\n# corrected\n", "utf-8")
    capsys.readouterr()
    make_pairs(recipe, recipe.model, output)
    assert "rule.py has changed since 64 completions were judged" in capsys.readouterr().out
    # The same completions, from their file, need no model.
    stored = on_policy(f"judge={{scores: {{path: {output.with_suffix('.samples.jsonl')}}}}}")
    copy = tmp_path / "copy.jsonl"
    make_pairs(stored, recipe.model, copy)
    assert copy.read_bytes() == plain.read_bytes()


def test_pairs_of_other_settings_are_refused_and_start_over(on_policy, tmp_path):
    output = tmp_path / "out.jsonl"
    fail(tmp_path, 1, "ValueError('x')")
    recipe = on_policy("pairs.prompts.path=" + str(tmp_path / "p.jsonl"))
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "say red"}, {"prompt": "say blue"}] * 2)
    with pytest.raises(RecipeError, match="JDG006"):
        make_pairs(recipe, recipe.model, output)
    other = on_policy("pairs.prompts.path=" + str(tmp_path / "p.jsonl"), temperature=0.5)
    with pytest.raises(
        RecipeError, match=r"pairs.temperature was 1.0 there and is 0.5 now.*RUN102"
    ):
        make_pairs(other, other.model, output)
    with pytest.raises(RecipeError, match="RUN102"):
        check_pairs(other, other.model, output)
    with pytest.raises(RecipeError, match="JDG006"):
        make_pairs(other, other.model, output, overwrite=True)
    fail(tmp_path, 0, "")
    summary = make_pairs(other, other.model, output, overwrite=True)
    assert summary.speed.completions == 0  # what --overwrite has sampled is not sampled again
    assert summary.dropped["rows of prompts"] == {"the prompt is a duplicate of an earlier one": 2}
    impossible = on_policy("pairs.prompts.path=" + str(tmp_path / "p.jsonl"), min_margin=50.0)
    with pytest.raises(DataError, match=r"no difference of at least.*DAT015"):
        make_pairs(impossible, other.model, tmp_path / "none.jsonl")
    # Nothing is sampled again for another rule.
    again = on_policy("pairs.prompts.path=" + str(tmp_path / "p.jsonl"), min_margin=1.0)
    assert make_pairs(again, other.model, tmp_path / "none.jsonl").speed.completions == 0


KINDS = {"pairs": "pair", "labels": "labelled", "best": "demonstration"}


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_command_writes_rows_that_trainers_read_as_they_are(
    on_policy, tokenizer_of, recipe_data, run_json, tmp_path, kind
):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    chats = [{**row, "system": "be kind", "tools": tools} for row in pairs(6, chat=True)]
    chats[1] = {"messages": chats[1]["prompt"], "system": "be kind", "tools": tools}
    data = write_jsonl(tmp_path / "chats.jsonl", chats)
    suffix = "parquet" if kind == "labels" else "jsonl"
    output = tmp_path / f"out.{suffix}"
    options = [f"pairs.kind={kind}", f"pairs.prompts.path={data}"]
    options += ["pairs.desirable_threshold=2"] if kind == "labels" else []
    on_policy()
    code, document, _ = run_json("pairs", tmp_path / "recipe.yaml", *options, "--output", output)
    assert (code, document["prompts"], document["completions"]) == (0, 6, 24)
    assert document["speed"]["tokens_per_second"] > 0
    rows = pq.read_table(output).to_pylist() if kind == "labels" else read_jsonl(output)
    assert document["rows"] == len(rows)
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    provenance = yaml.safe_load((tmp_path / "out.provenance.yaml").read_text("utf-8"))
    assert provenance["sampling"]["pairs.samples_per_prompt"] == 4
    assert provenance["result"]["rows"] == len(rows)
    split = load_split(
        [Source(path=str(output))],
        "data.train",
        KINDS[kind],
        tokenizer_of(recipe_data),
        limits=Limits(64),
        seed=0,
    )
    assert split.read == len(rows)
    assert len(split.rows) + sum(tally.count for tally in split.dropped.values()) == len(rows)
    assert split.conversational
    column = "chosen" if kind == "pairs" else "completion"
    assert split.rows[0][column] == rows[0][column]
    assert split.rows[0]["prompt"] == rows[0]["prompt"]
    assert json.loads(split.rows[0]["tools"]) == tools
    assert split.findings == [] or all(f.name != "score_contradictions" for f in split.findings)


@pytest.fixture
def tokenizer_of(make_recipe):
    return lambda data: load_tokenizer(make_recipe(data).recipe.model)


def test_pairs_dry_run_checks_and_samples_nothing(on_policy, run_json, tmp_path):
    on_policy()
    path, output = tmp_path / "recipe.yaml", tmp_path / "out.jsonl"
    code, document, err = run_json("pairs", path, "--output", output, "--dry-run")
    assert code == 0
    assert "rule gives 3 for 'yes', 2 for 'no'" in err
    assert document["checks"][0] == "prompts: 10 prompts"
    assert sorted(p.name for p in tmp_path.glob("out*")) == []
    code, document, _ = run_json("pairs", path, "judge=null", "--output", output, "--dry-run")
    assert (code, document["problems"][0]["code"]) == (2, "JDG008")
    code, document, _ = run_json("pairs", path, "pairs.max_new_tokens=127", "--output", output)
    assert (code, document["problems"][0]["code"]) == (4, "DAT015")


@pytest.mark.slow
def test_pairs_process_that_is_killed_continues_to_the_same_output(on_policy, tmp_path):
    on_policy()
    slow = """
    import json, sys, time
    for line in sys.stdin:
        row = json.loads(line)
        time.sleep(0.02)
        print(json.dumps({"id": row["id"], "score": len(row["completion"]) % 5}))
    """
    (tmp_path / "judge.py").write_text(textwrap.dedent(slow), "utf-8")
    command = [sys.executable, "-m", "prefcli", "pairs", str(tmp_path / "recipe.yaml")]
    command += ["pairs.batch_size=2"]
    command.append(
        f"judge={{executable: {{command: [{sys.executable}, {tmp_path / 'judge.py'}]}}}}"
    )
    subprocess.run([*command, "--output", str(tmp_path / "plain.jsonl")], check=True)
    output = tmp_path / "out.jsonl"
    for name in ("samples", "scores"):
        partial = tmp_path / f"out.{name}.partial"
        process = subprocess.Popen([*command, "--output", str(output)])
        while process.poll() is None and (
            not partial.exists() or partial.read_bytes().count(b"\n") < 5
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not output.exists()
    subprocess.run([*command, "--output", str(output)], check=True)
    assert output.read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
