"""Samples during training: which model answers, where they are saved, no effect on training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import RecipeError
from prefcli.evaluation.generate import NotANumberError, Sampling, completion_text, generate
from prefcli.evaluation.sample_prompts import choose_prompts
from prefcli.model import detect_device, load_base_config, load_policy, load_tokenizer
from prefcli.recipe.sections import Model, SampleOptions
from prefcli.training.callbacks.sampling_callback import make_samples
from prefcli.training.trainer import make_trainer
from tests.support.tiny_runs import UNTIMED, pairs, write_jsonl
from tests.support.tiny_tokenizers import llama3, sentencepiece

NEW = 6

_SIDES = {"sft": [["chosen"]] * 3, "kto": [["chosen"], ["chosen"], ["rejected"]]}
"""The answers in the data for each of the three prompts; pairs have both."""


@pytest.fixture
def data(recipe_data) -> dict:
    """Two steps with an evaluation after each; three prompts."""
    recipe_data["samples"] = {"prompts": 3, "max_new_tokens": NEW}
    recipe_data["training"] |= {
        "eval_steps": 1,
        "gradient_checkpointing": True,
        "learning_rate": 0.03,  # so that two steps change the greedy answers
    }
    return recipe_data


def run(recipe, name: str, checkpoint: Path | None = None):
    """(trainer, samples) after training, built as in a run."""
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.methods[name], tokenizer)
    method, _ = inputs.resolve_from_data(recipe.methods[name])
    folder = Path(recipe.output_dir)
    folder.mkdir(exist_ok=True)
    config = load_base_config(recipe.model)
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    trainer, _ = make_trainer(
        recipe,
        method,
        detect_device(),
        policy,
        tokenizer,
        inputs,
        eval_on_start=checkpoint is None,
    )
    samples = make_samples(
        recipe, method, inputs.eval, tokenizer, config, folder / "samples.jsonl", trainer
    )
    if samples is not None:
        trainer.add_callback(samples)
        trainer.add_eval_metrics(samples.eval_metrics)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, samples


def rows_of(recipe) -> list[dict]:
    lines = (Path(recipe.output_dir) / "samples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@torch.no_grad()
def by_hand(model, tokenizer, prompt, ends=(1,)) -> str:
    """Greedy decoding without a batch, padding or a cache."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    model.eval()
    for _ in range(NEW):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
        if ids[-1] in ends:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("dpo", {"lora": {"rank": 4, "dropout": 0.2}}),
        ("kto", {}),
        ("sft", {"lora": {"rank": 4, "dropout": 0.2}}),
        ("simpo", {}),
    ],
    ids=["dpo-lora", "kto", "sft-lora", "simpo"],
)
def test_samples_use_current_weights_without_effect_on_training(
    data, make_recipe, tiny_model, tmp_path, name, sections
):
    loaded = make_recipe({**data, **sections})
    with_samples, _ = run(loaded.recipe, name)
    without, no_samples = run(
        make_recipe(
            {**data, **sections, "samples": {"prompts": 0}}, f"output_dir={tmp_path}/no"
        ).recipe,
        name,
    )
    assert no_samples is None
    one, other = with_samples.model.state_dict(), without.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    history = [
        [
            {k: v for k, v in row.items() if not k.endswith(UNTIMED) and "samples_" not in k}
            for row in trainer.state.log_history
        ]
        for trainer in (with_samples, without)
    ]
    assert history[0] == history[1]

    rows = rows_of(loaded.recipe)
    assert [row["step"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3
    held_out = pairs(40)[30:]
    # Spread over ten rows; kto has twenty, and the last ten are the rejected sides.
    chosen_rows = [0, 6, 3] if name == "kto" else [0, 3, 6]
    places = [f"eval.jsonl: row {i + 1}" for i in chosen_rows]
    assert [row["place"].rpartition("/")[2] for row in rows] == places * 3
    expected_rows = [held_out[i] for i in chosen_rows]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    start = AutoModelForCausalLM.from_pretrained(tiny_model)
    for row, expected in zip(rows[:3], expected_rows, strict=True):
        assert row["prompt"] == expected["prompt"]
        sides = [side for side in ("chosen", "rejected") if side in row]
        assert all(row[side] == expected[side] for side in sides)
        assert (
            sides == _SIDES.get(name, [["chosen", "rejected"]] * 3)[expected_rows.index(expected)]
        )
        assert row["policy"]["greedy"] == by_hand(start, tokenizer, expected["prompt"])
    for row, expected in zip(rows[6:], expected_rows, strict=True):
        assert row["policy"]["greedy"] == by_hand(with_samples.model, tokenizer, expected["prompt"])
    for row in rows:
        if loaded.recipe.methods[name].needs_reference:
            assert row["reference"] == rows[rows.index(row) % 3]["policy"]
        else:
            assert "reference" not in row
    assert rows[0]["policy"]["greedy"] != rows[6]["policy"]["greedy"]
    assert {tuple(row["policy"]) for row in rows} == {("greedy", "sampled", "cut")}
    assert {*rows[0]["policy"]["cut"]} <= {"greedy", "sampled"}


def test_samples_of_the_reference_include_the_starting_adapter(data, make_recipe, tmp_path):
    """The reference is the base with the starting adapter, not the base alone."""
    first = make_recipe({**data, "lora": {"rank": 2, "dropout": 0.0}}).recipe
    trainer, _ = run(first, "sft")
    adapter = tmp_path / "adapter"
    trainer.save_model(str(adapter))
    ends = rows_of(first)[6:]
    for mode, lora in (("continue", {}), ("stack", {"lora": {"rank": 2, "dropout": 0.0}})):
        model = {"name_or_path": str(adapter), "adapter": mode}
        recipe = make_recipe({**data, **lora, "model": model, "output_dir": str(tmp_path / mode)})
        run(recipe.recipe, "dpo")
        rows = rows_of(recipe.recipe)
        for row, end in zip(rows[:3], ends, strict=True):
            assert row["policy"] == end["policy"]
        assert [row["reference"] for row in rows[6:]] == [end["policy"] for end in ends]
        assert rows[6]["policy"]["greedy"] != rows[6]["reference"]["greedy"]


@pytest.fixture
def other_model(tiny_model, tmp_path) -> Path:
    """The tiny model with the sign of its outputs reversed."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = -weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_samples_of_a_named_reference_are_its_own(data, make_recipe, other_model, tiny_model):
    data["reference"] = {"name_or_path": str(other_model)}
    recipe = make_recipe(data).recipe
    run(recipe, "dpo")
    rows, tokenizer = rows_of(recipe), AutoTokenizer.from_pretrained(tiny_model)
    other = AutoModelForCausalLM.from_pretrained(other_model)
    for row in rows:
        assert row["reference"]["greedy"] == by_hand(other, tokenizer, row["prompt"])
    assert rows[0]["policy"]["greedy"] != rows[0]["reference"]["greedy"]


def test_samples_omit_a_precomputed_named_reference(
    data, make_recipe, other_model, tmp_path, capsys
):
    data["reference"] = {"precompute": True}
    recipe = make_recipe(data).recipe
    run(recipe, "dpo")
    rows = rows_of(recipe)
    assert all(
        row["reference"] == first["policy"] for row, first in zip(rows, rows[:3] * 3, strict=True)
    )
    assert "without answers of the reference" not in capsys.readouterr().out

    data["reference"]["name_or_path"] = str(other_model)
    recipe = make_recipe(data, f"output_dir={tmp_path}/named").recipe
    run(recipe, "dpo")
    assert not any("reference" in row for row in rows_of(recipe))
    assert "samples: without answers of the reference" in capsys.readouterr().out


def test_samples_of_a_resumed_run_continue_the_file(data, make_recipe, capsys):
    recipe = make_recipe(data, "training.save_steps=1").recipe
    run(recipe, "dpo")
    before = rows_of(recipe)
    path = Path(recipe.output_dir) / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in before[:6]))
    _, samples = run(recipe, "dpo", Path(recipe.output_dir) / "checkpoint-1")
    assert rows_of(recipe) == before
    assert len(samples.closing_lines()) == 4

    # The reference answered only the prompts at the start of the run.
    other_prompts = make_recipe(data, "training.save_steps=1", "samples.prompts=4").recipe
    capsys.readouterr()
    run(other_prompts, "dpo", Path(recipe.output_dir) / "checkpoint-1")
    assert [("reference" in row) for row in rows_of(other_prompts)[9:]] == [
        True,
        False,
        False,
        False,
    ]
    assert "without answers of the reference to 3 prompts" in capsys.readouterr().out


def test_samples_of_chats_use_the_chat_template(data, make_recipe, tmp_path, tiny_model):
    turns = [
        {"role": "user", "content": "red?"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "say green"},
        {"role": "assistant", "content": "green\nthanks"},
    ]
    single = [{"role": "user", "content": "big?"}, {"role": "assistant", "content": "yes"}]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}, {"messages": single}] * 8)
    data["data"] |= {"train": {"path": str(path)}, "eval": {"path": str(path)}}
    recipe = make_recipe(data).recipe
    trainer, samples = run(recipe, "sft")
    rows, tokenizer = rows_of(recipe), AutoTokenizer.from_pretrained(tiny_model)
    assert [(row["prompt"], row["chosen"]) for row in rows[:2]] == [
        ("say green", "green\nthanks"),
        ("big?", "yes"),
    ]
    assert len(rows) == 6  # there are two prompts
    for row, prompt in zip(rows[4:], (turns[:3], single[:1]), strict=True):
        assert row["policy"]["greedy"] == by_hand(trainer.model, tokenizer, prompt)
    assert not any("\n" in line or "\x1b" in line for line in samples.closing_lines())


def test_samples_of_a_policy_with_nan_are_skipped_with_a_warning(
    data, make_recipe, tiny_model, tmp_path, capsys
):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38  # overflows
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options = Model(name_or_path=str(folder))
    model = load_policy(options, torch.float32, 0)
    with pytest.raises(NotANumberError, match="not finite"):
        generate(model, load_tokenizer(options), ["say red"], Sampling(max_new_tokens=2))

    data["model"]["name_or_path"] = str(folder)
    recipe = make_recipe(data).recipe
    with pytest.raises(Exception, match="nan"):
        run(recipe, "orpo")
    assert "samples: none at step 0" in capsys.readouterr().out
    assert not (Path(recipe.output_dir) / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("<s> ▁the ▁cat", "▁sat !", " sat!"),
        ("<s> ▁the ▁cat", "s ▁sat <s>", "s sat"),
        ("<s>", "▁the ▁cat", "the cat"),
    ],
    ids=["space", "end of a word", "no prompt"],
)
def test_completion_text_of_sentencepiece_is_what_follows_the_prompt(prompt, completion, expected):
    tokenizer = sentencepiece()
    ids = [tokenizer.convert_tokens_to_ids(text.split()) for text in (prompt, completion)]
    assert completion_text(tokenizer, *ids) == expected


def test_completion_text_after_half_a_character_is_the_completion_alone():
    tokenizer = llama3()
    ids = tokenizer("é!", add_special_tokens=False)["input_ids"]
    assert completion_text(tokenizer, ids[:1], ids[1:]) == "\ufffd!"


def chosen_of(data, make_recipe, rows, options, context):
    path = write_jsonl(Path(data["output_dir"]).parent / "rows.jsonl", rows)
    recipe = make_recipe({**data, "data": {**data["data"], "eval": {"path": str(path)}}}).recipe
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.dpo, tokenizer)
    return choose_prompts(inputs.eval, tokenizer, options, context)


def test_choose_prompts_prefers_prompts_that_leave_room(data, make_recipe):
    """A letter that occurs in no word is one token."""
    rows = [
        {"prompt": "Q" * n, "chosen": "yes", "rejected": "no"} for n in (10, 20, 20, 28, 30, 31)
    ]
    chosen = chosen_of(data, make_recipe, rows, SampleOptions(prompts=2, max_new_tokens=10), 30)
    assert [(a.tokens, a.place[-5:]) for a in chosen.prompts] == [(10, "row 1"), (20, "row 2")]
    assert (chosen.max_new_tokens, chosen.notes) == (10, [])
    # With three prompts, one leaves two tokens, which limits all answers.
    chosen = chosen_of(data, make_recipe, rows, SampleOptions(prompts=3, max_new_tokens=10), 30)
    assert [a.tokens for a in chosen.prompts] == [10, 20, 28]
    assert chosen.max_new_tokens == 2
    assert chosen.notes == [
        "2 prompts fill the context of 30 tokens",
        "answers have at most 2 tokens, not 10: the longest prompt has 28, the context 30",
    ]
    chosen = chosen_of(data, make_recipe, rows, SampleOptions(prompts=9, max_new_tokens=1), None)
    assert [a.tokens for a in chosen.prompts] == [10, 20, 28, 30, 31]
    assert chosen.notes == ["5 prompts, not 9: data.eval has no more"]


def test_make_samples_of_texts_without_prompts_is_none(data, make_recipe, tmp_path, capsys):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": "red green"}, {"text": "blue"}] * 8)
    data["data"] |= {"train": {"path": str(path)}, "eval": {"path": str(path)}}
    _, samples = run(make_recipe(data).recipe, "sft")
    assert samples is None
    assert "samples: none, since data.eval has no prompts" in capsys.readouterr().out


def test_make_samples_under_sharding_is_none(data, make_recipe, monkeypatch, capsys):
    recipe = make_recipe(data).recipe
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.dpo, tokenizer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = load_base_config(recipe.model)
    samples = make_samples(
        recipe, recipe.dpo, inputs.eval, tokenizer, config, Path("."), trainer=None
    )
    assert samples is None
    assert "prefcli does not generate under fsdp1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "without_eval", "message"),
    [
        ({"prompts": 2}, True, "samples has no effect without data.eval"),
        ({"prompts": 0, "temperature": 0.5}, False, "temperature has no effect with prompts: 0"),
        ({"temperature": 0.0}, False, "samples.temperature"),
    ],
)
def test_samples_settings_without_effect_fail(data, make_recipe, samples, without_eval, message):
    data["samples"] = samples
    if without_eval:
        del data["data"]["eval"], data["training"]["eval_steps"]
    with pytest.raises(RecipeError, match=message):
        make_recipe(data)


def test_dry_run_reports_the_length_of_answers(data, dry_run):
    """The context of the tiny model is 128 tokens."""
    data["samples"] = {"prompts": 1, "max_new_tokens": 128}
    code, _, log = dry_run(data)
    assert code == 0
    assert "samples: answers have at most 1" in log
    assert "not 128: the longest prompt has" in log
