"""data --scored: the estimate of label noise, prompts that repeat, judged pairs, the clean file."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefcli.data import Limits, load_split
from prefcli.data.clean_rows import write_clean
from prefcli.data.prompt_diversity import measure_diversity
from prefcli.errors import PrefcliError, RecipeError
from prefcli.evaluation.label_noise import estimate_noise
from prefcli.evaluation.scored_pairs import score_pairs
from prefcli.recipe.sections import Source
from tests.support.pages import read
from tests.support.plain_scores import log_softmax_sum
from tests.support.tiny_runs import pairs, write_jsonl


def simulated(count: int, share: float, slope: float, seed: int = 0):
    """Draw margins of a model that is right with probability sigmoid(slope * |margin|)."""
    draw = np.random.default_rng(seed)
    size = np.abs(draw.standard_normal(count))
    right = draw.random(count) < 1 / (1 + np.exp(-slope * size))
    swapped = draw.random(count) < share
    return np.where(right != swapped, size, -size), swapped


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_estimate_noise_finds_the_share_of_swapped_labels(share):
    margins, swapped = simulated(3000, share, slope=4)
    noise = estimate_noise(margins, np.arange(3000))
    assert noise.is_identified
    assert noise.share.low <= swapped.mean() <= noise.share.high
    assert noise.share.high - noise.share.low < 0.1
    named = noise.swapped > 0.5
    assert named.sum() == pytest.approx(noise.swapped[named].sum(), rel=0.4)
    assert swapped[named].sum() == pytest.approx(noise.swapped[named].sum(), rel=0.15)
    agreements = noise.agreements()
    assert [part.rows for part in agreements] == [300] * 10
    assert agreements[-1].agreement == pytest.approx(agreements[-1].expected, abs=0.05)


def test_estimate_noise_of_weak_margins_says_that_the_share_is_not_identified():
    noise = estimate_noise(simulated(400, 0.2, slope=0.3)[0], np.arange(400))
    assert not noise.is_identified
    assert noise.share.low <= 0.2 <= noise.share.high


def test_estimate_noise_counts_the_rows_of_one_prompt_as_dependent():
    margins, _ = simulated(500, 0.2, slope=4)
    once = estimate_noise(margins, np.arange(500)).share
    repeated = np.repeat(margins, 4)
    together = estimate_noise(repeated, np.repeat(np.arange(500), 4)).share
    alone = estimate_noise(repeated, np.arange(2000)).share
    assert together.high - together.low == pytest.approx(once.high - once.low, abs=0.01)
    assert alone.high - alone.low < 0.7 * (once.high - once.low)
    assert estimate_noise(margins, np.zeros(500)).share.low is None


@pytest.fixture
def split_of(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def make(prompts):
        rows = [{"prompt": prompt, "chosen": " yes", "rejected": " no"} for prompt in prompts]
        if not isinstance(prompts[0], str):
            turn = {"role": "assistant"}
            sides = {"chosen": [{**turn, "content": "a"}], "rejected": [{**turn, "content": "b"}]}
            rows = [{"prompt": prompt, **sides} for prompt in prompts]
        source = Source(path=str(write_jsonl(tmp_path / "prompts.jsonl", rows)))
        limits = Limits(100_000)
        return load_split([source], "data.train", "pair", tokenizer, limits=limits, seed=0), (
            tokenizer
        )

    return make


def words(seed: int, count: int = 40, letters: str = "abcdefghijklmnop") -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(letters, k=6)) for _ in range(count)]


def test_measure_diversity_finds_prompts_that_nearly_repeat_an_earlier_one(split_of):
    one, other = words(0), words(1)
    changed = [*one[:20], "zz", *one[21:]]
    prompts = [one, other, changed, one, changed, [*one[:20], *other[20:]]]
    diversity = measure_diversity(*split_of([" ".join(prompt) for prompt in prompts]))
    assert (diversity.rows, diversity.prompts) == (6, 4)
    assert diversity.near_duplicates.tolist() == [2, 4]
    assert "2 rows" in diversity.lines()[0]
    assert diversity.opening == " ".join(one[:4])
    assert diversity.opening_share == 3 / 4


def test_measure_diversity_ignores_the_wording_of_a_template_and_system_turns(split_of):
    template = " ".join(words(9, 60, "qrstuvwxyz"))
    texts = [f"{template} {' '.join(words(seed, 8))}" for seed in range(30)]
    assert measure_diversity(*split_of([*texts, template])).near_duplicates.tolist() == []
    system = {"role": "system", "content": template}
    chats = [[system, {"role": "user", "content": text[-60:]}] for text in texts[:5]]
    diversity = measure_diversity(*split_of([*chats, [{"role": "user", "content": "x"}]]))
    assert (diversity.prompts, diversity.near_duplicates.tolist()) == (6, [])


def test_data_command_with_scored_judges_pairs_and_writes_the_others(
    tuned, tiny_model, recipe_data, make_recipe, run_json, tmp_path
):
    rows = [{**row, "id": i} for i, row in enumerate(pairs(12))]
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, {**rows[0], "chosen": " green"}])
    recipe_data["data"]["train"] = {"path": str(data)}
    recipe = make_recipe(recipe_data).recipe
    page, clean = tmp_path / "page.html", tmp_path / "clean.jsonl"
    arguments = ["--method", "dpo", "--html", page, "--write-clean", clean, "--drop", "hard"]
    code, document, err = run_json(
        "data", tmp_path / "recipe.yaml", "--scored", tuned / "full", *arguments
    )
    assert code == 0
    judged, written = document["pairs"], document["clean"]
    assert (judged["pairs"], judged["trained_on"], judged["too_long"]) == (13, 0, 0)
    different = len({row["prompt"] for row in rows})
    assert document["splits"]["train"]["prompts"]["prompts"] == different
    assert "label noise: " in err
    hard = judged["kinds"]["hard"]
    assert written["dropped"] == {"hard": hard["count"]}
    assert written["rows"] == 13 - hard["count"]
    remaining = [json.loads(line) for line in clean.read_text("utf-8").splitlines()]
    assert [row for row in rows if row in remaining] == [row for row in remaining if row in rows]
    assert "What the pairs are worth" in read(page.read_text("utf-8")).text

    # Margins are those of a plain softmax.
    split = load_split(
        recipe.data.train, "data.train", "pair", AutoTokenizer.from_pretrained(tiny_model),
        limits=Limits(64), seed=0,
    )  # fmt: skip
    scored = score_pairs(recipe, recipe.dpo, split, models=[str(tuned / "full")])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    full, start = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (tuned / "full", tiny_model)
    )
    for row, margin in list(zip(rows, scored.margins, strict=False))[:3]:
        chosen, rejected = (
            sum(
                sign * log_softmax_sum(model, tokenizer, row["prompt"], row[side])[0]
                for sign, model in ((1, full), (-1, start))
            )
            for side in ("chosen", "rejected")
        )
        assert margin == pytest.approx(0.1 * (chosen - rejected), abs=1e-5)


def test_score_pairs_by_a_run_skips_the_prompts_that_it_was_trained_on(
    run_folder, recipe_data, make_recipe, tmp_path
):
    recipe = make_recipe(recipe_data).recipe
    complete = str(run_folder)
    half = shutil.copytree(run_folder, tmp_path / "half", symlinks=True)
    trained = write_jsonl(tmp_path / "half.jsonl", pairs(24)[:3])
    own = {**recipe_data, "data": {**recipe_data["data"], "train": {"path": str(trained)}}}
    (half / "recipe.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    rows = load_split(
        recipe.data.train, "data.train", "pair",
        AutoTokenizer.from_pretrained(recipe.model.name_or_path), limits=Limits(64), seed=0,
    )  # fmt: skip
    seen = {row["prompt"] for row in pairs(24)[:3]}
    unseen = [i for i, row in enumerate(rows.rows) if row["prompt"] not in seen]
    assert unseen
    for model in (half, half / "model"):
        scored = score_pairs(recipe, recipe.dpo, rows, models=[complete, str(model)])
        assert scored.rows.tolist() == unseen
        assert scored.trained_on == len(rows.rows) - len(unseen)
    with pytest.raises(RecipeError, match="RCP042"):
        score_pairs(recipe, recipe.dpo, rows, models=[complete])
    reward_run = shutil.copytree(half, tmp_path / "reward", symlinks=True)
    (reward_run / "model").unlink()
    base = recipe.model.name_or_path
    shutil.copytree(base, reward_run / "model")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(
        reward_run / "model"
    )
    scored = score_pairs(recipe, recipe.dpo, rows, reward_model=str(reward_run))
    assert scored.rows.tolist() == unseen
    trained.unlink()
    with pytest.raises(PrefcliError) as gone:
        score_pairs(recipe, recipe.dpo, rows, models=[str(half)])
    assert str(half / "recipe.yaml") in str(gone.value.problems[0].place)


def test_write_clean_swaps_the_columns_of_a_side_and_keeps_the_others(
    recipe_data, make_recipe, tiny_model, tmp_path
):
    rows = [
        {"prompt": r["prompt"], "good": r["chosen"], "bad": r["rejected"], "chosen_score": i,
         "rejected_score": -i, "id": i}
        for i, r in enumerate(pairs(20))
    ]  # fmt: skip
    source = {
        "path": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "columns": {"chosen": "good", "rejected": "bad"},
        "fraction": 0.5,
    }
    recipe_data["data"]["train"] = source
    recipe = make_recipe(recipe_data).recipe
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    limits = Limits(64)
    split = load_split(
        recipe.data.train, "data.train", "pair", tokenizer, limits=limits, seed=recipe.seed
    )
    output = tmp_path / "clean.jsonl"
    drop = {"easy": [0, 1], "near-duplicates": [1, 2]}
    clean = write_clean(recipe, split, output, drop=drop, swap=[2, 3])
    assert (clean.rows, clean.dropped, clean.swapped) == (7, {"easy": 2, "near-duplicates": 1}, 1)
    written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    numbers = [number - 1 for number in split.rows["_row"][3:]]
    assert [row["id"] for row in written] == numbers
    first, before = written[0], rows[numbers[0]]
    assert (first["good"], first["bad"]) == (before["bad"], before["good"])
    assert first["chosen_score"] == before["rejected_score"]
    assert written[1:] == [rows[number] for number in numbers[1:]]
    again = load_split(
        [Source(**clean.source)], "data.train", "pair", tokenizer, limits=limits, seed=0
    )
    assert len(again.rows) == 7

    recipe_data["data"]["train"] = [source, {"path": source["path"], "columns": {"chosen": "bad"}}]
    other = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="RCP043"):
        write_clean(other, split, output, drop=drop, swap=[])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--method", "kto", "--scored", "MODEL"], "RCP041"),
        (["--drop", "easy", "--write-clean", "c.jsonl"], "RCP044"),
        (["--swap", "contradicted", "--write-clean", "c.jsonl"], "RCP044"),
        (["--drop", "esy", "--write-clean", "c.jsonl"], "RCP033"),
        (["--drop", "contradicted", "--swap", "contradicted", "--write-clean", "c"], "RCP033"),
        (["--drop", "near-duplicates", "--write-clean", "c.txt"], "RCP033"),
        (["--drop", "near-duplicates"], "RCP025"),
        (["--write-clean", "c.jsonl"], "RCP025"),
        (["--drop", "near-duplicates", "--write-clean", "c.jsonl", "--sample", "9"], "RCP025"),
        (["--scored", "MODEL", "--reward-model", "MODEL"], "RCP025"),
        (["--scored", "./no-such-model"], "MDL001"),
    ],
)
def test_data_command_with_a_wrong_option_is_an_error_with_its_code(
    recipe_data, make_recipe, tuned, run_json, tmp_path, monkeypatch, arguments, code
):
    monkeypatch.chdir(tmp_path)
    make_recipe(recipe_data)
    named = [str(tuned / "full") if one == "MODEL" else one for one in arguments]
    method = [] if "--method" in named else ["--method", "dpo"]
    exit_code, document, _ = run_json("data", "recipe.yaml", *method, *named)
    assert exit_code == 2
    (problem,) = document["problems"]
    assert problem["code"] == code
    assert not (tmp_path / "c.jsonl").exists()
