"""score: rewards against a plain softmax, ranks, stopped and continued starts, reward models."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from prefcli.data.convert import Place
from prefcli.data.sources import read
from prefcli.errors import DataError, InterruptedRunError, RecipeError
from prefcli.evaluation.best_of import best_of
from prefcli.evaluation.candidates import CandidateReader
from prefcli.evaluation.partial_file import PartialFile
from prefcli.evaluation.ranks import rank
from prefcli.evaluation.score_file import CHUNK, score_file
from prefcli.evaluation.scorers import RewardFormula, Scorer, policy_scorer
from prefcli.model.reward_model import load_reward_model, rewards
from prefcli.recipe.sections import Model, Source
from tests.support import pages
from tests.support.limits import file_size_limit
from tests.support.plain_scores import log_softmax_sum
from tests.support.tiny_runs import pairs, write_jsonl


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def test_score_command_of_an_adapter_equals_a_plain_softmax(
    run_folder, tuned, tiny_model, tokenizer, run_json, tmp_path
):
    rows = [
        {"id": i, "prompt": row["prompt"], "responses": [row["rejected"], row["chosen"], " yes"]}
        for i, row in enumerate(pairs(3))
    ]
    data, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "new" / "out.jsonl"
    page = tmp_path / "score.html"
    code, document, _ = run_json(
        "score", run_folder, data, "--output", output, "--per-token", "--html", page
    )
    assert (code, document["responses"], document["prompts"]) == (0, 9, 3)
    curve = [one["reward"] for one in document["best_of"]]
    assert (curve[0], curve[-1]) == pytest.approx((document["mean"], document["best"]))
    assert sum(document["distribution"]["counts"]["best of each prompt"]) == 3
    assert "best of 3" in " ".join(pages.read(page.read_text("utf-8")).text.split())
    start = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    adapted = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted.load_adapter(str(tuned / "adapter"))
    for row, scored in zip(rows, read_jsonl(output), strict=True):
        assert {name: scored[name] for name in row} == row
        expected = []
        for response, logp, ref_logp, tokens in zip(
            row["responses"], scored["logps"], scored["ref_logps"], scored["tokens"], strict=True
        ):
            own, count = log_softmax_sum(adapted.eval(), tokenizer, row["prompt"], response)
            reference, _ = log_softmax_sum(start, tokenizer, row["prompt"], response)
            assert (logp, ref_logp) == (pytest.approx(own), pytest.approx(reference))
            assert tokens == count
            expected.append(0.1 * (own - reference) / count)
        assert scored["rewards"] == pytest.approx(expected, abs=1e-5)
        assert scored["best"] == int(np.argmax(expected))
        assert scored["ranks"] == (1 + np.argsort(np.argsort(-np.array(expected)))).tolist()


def test_policy_scorer_of_a_full_model_without_reference_equals_a_plain_softmax(
    tuned, tokenizer, recipe_data, make_recipe
):
    recipe = make_recipe(recipe_data).recipe
    formula = RewardFormula(beta=2.0, with_reference=False, per_token=False)
    prompt, answer = "say red", " blue thanks"
    with policy_scorer(recipe, str(tuned / "full"), formula) as scorer:
        ids = tokenizer(prompt)["input_ids"], tokenizer(answer + tokenizer.eos_token)["input_ids"]
        (numbers,) = scorer.score([ids])
    full = AutoModelForCausalLM.from_pretrained(tuned / "full").eval()
    logp, _ = log_softmax_sum(full, tokenizer, prompt, answer)
    assert numbers["reward"] == pytest.approx(2.0 * logp, rel=1e-5)
    assert "ref_logp" not in numbers
    formula = RewardFormula(beta=0.1, with_reference=True, per_token=False)
    with (
        pytest.raises(RecipeError, match="MDL042"),
        policy_scorer(recipe, recipe.model.name_or_path, formula),
    ):
        pass


def test_rank_gives_ties_the_same_rank_and_nothing_to_missing_rewards():
    nan = float("nan")
    values = np.array([1.0, 3.0, 3.0, nan, -2.0, nan, 5.0])
    groups = np.array([7, 7, 7, 7, 9, 8, 9])
    ranks, best = rank(values, groups)
    assert ranks.tolist() == [3, 1, 1, 0, 2, 0, 1]
    assert best.tolist() == [False, True, False, False, False, False, True]


def test_best_of_equals_the_mean_over_all_choices():
    draw = np.random.default_rng(3)
    parts = [draw.normal(size=size) for size in (5, 4, 4, 2)]  # the last has too few
    values = np.concatenate([*parts, [np.nan]])
    groups = np.repeat([7, 3, 9, 1, 1], [5, 4, 4, 2, 1])
    curve = best_of(values, groups)
    assert [one.n for one in curve] == [1, 2, 3, 4]
    for one in curve:
        expected = [np.mean([max(c) for c in combinations(p, one.n)]) for p in parts[:3]]
        assert one.reward == pytest.approx(np.mean(expected))
        assert one.low <= one.reward <= one.high
    assert best_of(values[:3], np.arange(3)) == []


class Stopping:
    """Rewards of the length of responses, until a number of responses is reached."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit, self.scored = limit, 0

    def __call__(self, rows) -> list[dict]:
        if self.scored + len(rows) > self.limit:
            raise KeyboardInterrupt
        self.scored += len(rows)
        return [{"reward": float(len(answer) % 7), "tokens": len(answer)} for _, answer in rows]


def fake_scorer(tokenizer, score, **facts) -> Scorer:
    return Scorer(tokenizer, facts, "length", ("reward", "tokens"), score)


def test_score_file_that_was_stopped_continues_to_the_same_output(
    recipe_data, make_recipe, tokenizer, tmp_path
):
    recipe = make_recipe(recipe_data).recipe
    rows = [
        {"prompt": row["prompt"], "response": row[side], "n": i}
        for i, row in enumerate(pairs(100))
        for side in ("chosen", "rejected", "chosen")
    ]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    plain, output = tmp_path / "plain.jsonl", tmp_path / "out.jsonl"
    score_file(recipe, data, plain, fake_scorer(tokenizer, Stopping()))
    partial = tmp_path / "out.partial"
    with pytest.raises(InterruptedRunError, match=f"{CHUNK} of 300 rows"):
        score_file(recipe, data, output, fake_scorer(tokenizer, Stopping(CHUNK + 1)))
    assert not output.exists()
    with partial.open("a") as file:
        file.write('[{"group": 1, "sco')  # a torn line
    with pytest.raises(RecipeError, match="RUN102"):
        score_file(recipe, data, output, fake_scorer(tokenizer, Stopping(), beta=0.2))
    rest = Stopping()
    summary = score_file(recipe, data, output, fake_scorer(tokenizer, rest))
    assert rest.scored == 300 - CHUNK
    assert output.read_bytes() == plain.read_bytes()
    assert not partial.exists()
    scored = read_jsonl(output)
    # The ranks are over all rows with the same prompt, wherever they are in the file.
    by_prompt: dict[str, list[dict]] = {}
    for row in scored:
        by_prompt.setdefault(row["prompt"], []).append(row)
    assert summary.prompts == len(by_prompt)
    for group in by_prompt.values():
        assert sum(row["best"] for row in group) == 1
        for row in group:
            assert row["rank"] == 1 + sum(other["reward"] > row["reward"] for other in group)


def test_partial_file_of_another_process_is_locked(tmp_path):
    path = tmp_path / "out.partial"
    with PartialFile(path, {"n": 1}, "stop"), pytest.raises(RecipeError, match="RUN012"):
        PartialFile(path, {"n": 1}, "stop")
    with PartialFile(path, {"n": 1}, "stop") as partial:
        assert list(partial.values()) == []
    with pytest.raises(RecipeError, match=r"n was 1 there and is 2 now"):
        PartialFile(path, {"n": 2}, "stop")


def test_score_file_writes_parquet_with_the_types_of_all_rows(
    recipe_data, make_recipe, tokenizer, tmp_path
):
    recipe = make_recipe(recipe_data).recipe
    rows = [{**row, "meta": None} for row in pairs(3)]
    rows[2]["meta"] = {"source": "ä"}
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    output = tmp_path / "out.parquet"
    score_file(recipe, data, output, fake_scorer(tokenizer, Stopping()))
    table = pq.read_table(output).to_pylist()
    assert [row["meta"] for row in table] == [None, None, {"source": "ä"}]
    assert {"chosen_reward", "rejected_reward", "chosen_rank", "rejected_rank"} <= table[0].keys()
    rows[2]["meta"] = "text"
    rows[1]["meta"] = 1
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match="DAT031"):
        score_file(recipe, data, tmp_path / "mixed.parquet", fake_scorer(tokenizer, Stopping()))
    # The scores are not computed again.
    again = Stopping()
    score_file(recipe, data, tmp_path / "mixed.jsonl", fake_scorer(tokenizer, again))
    assert again.scored == 0
    output = tmp_path / "twice.jsonl"
    with pytest.raises(DataError, match="DAT030"):
        score_file(recipe, str(tmp_path / "mixed.jsonl"), output, fake_scorer(tokenizer, again))


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("row", "layout", "responses"),
    [
        ({"prompt": "hi", "responses": ["yes", "no", ""]}, "list", 3),
        ({"prompt": [USER], "responses": ["yes", [ANSWER]]}, "list", 2),
        ({"prompt": "hi", "responses": []}, "list", 0),
        ({"prompt": "hi", "response": "yes"}, "single", 1),
        ({"prompt": "hi", "completion": "yes", "label": True}, "single", 1),
        ({"messages": [USER, ANSWER]}, "single", 1),
        ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, "pair", 2),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": "no"}, "pair", 2),
    ],
)
def test_candidate_reader_reads_every_layout(tokenizer, tmp_path, row, layout, responses):
    data = str(write_jsonl(tmp_path / "rows.jsonl", [row]))
    reader = CandidateReader(read(Source(path=data), "DATA"), Place(data, "DATA"))
    assert reader.layout == layout
    _, rows = reader.read(0, tokenizer)
    assert len(rows) == responses
    assert all(answer[-1] == tokenizer.eos_token_id for _, answer in rows)


def test_candidate_reader_names_the_row_that_differs(tokenizer, tmp_path):
    data = str(write_jsonl(tmp_path / "r.jsonl", [{"prompt": "a", "responses": []}, {"prompt": 1}]))
    reader = CandidateReader(read(Source(path=data), "DATA"), Place(data, "DATA"))
    with pytest.raises(DataError, match=r"r\.jsonl: row 2"):
        reader.read(1, tokenizer)
    data = str(write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}]))
    with pytest.raises(DataError, match="DAT011"):
        CandidateReader(read(Source(path=data), "DATA"), Place(data, "DATA"))


def test_reward_model_gives_each_row_what_it_gives_it_alone(tiny_model, tmp_path):
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 200, count).tolist() for count in (5, 17, 9, 40)]
    loaded = load_reward_model(Model(name_or_path=str(tmp_path / "rm")), torch.float32, "model")
    with torch.no_grad():
        alone = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]
    assert rewards(loaded, rows) == pytest.approx(alone, abs=1e-5)
    with pytest.raises(RecipeError, match="MDL040"):
        load_reward_model(Model(name_or_path=str(tiny_model)), torch.float32, "model")


def test_score_file_onto_a_full_disk_is_an_error(recipe_data, make_recipe, tokenizer, tmp_path):
    recipe = make_recipe(recipe_data).recipe
    rows = [{"prompt": row["prompt"], "response": row["chosen"] * 40} for row in pairs(6)]
    data, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    with file_size_limit(2000), pytest.raises(RecipeError, match="exceeds the allowed size"):
        score_file(recipe, str(data), output, fake_scorer(tokenizer, Stopping()))
    assert [path.name for path in tmp_path.glob("out.*")] == ["out.partial"]
    score_file(recipe, str(data), output, fake_scorer(tokenizer, Stopping()))
    assert len(read_jsonl(output)) == 6
