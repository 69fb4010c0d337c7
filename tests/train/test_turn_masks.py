"""Turns that are marked as not trained on: which labels trl's trainer gets, and what is refused."""

from __future__ import annotations

import pytest

from prefcli.data.run_datasets import first_row_view, load_run_datasets
from prefcli.errors import DataError, RecipeError
from prefcli.model import load_tokenizer
from tests.support.tiny_runs import trainer_of, write_jsonl

ROLES = {"user": "U", "assistant": "A", "system": "S"}


def turn(role, words, **marks):
    return {"role": role, "content": words, **marks}


CHAT = [
    turn("user", "say red", train=False),
    turn("assistant", "red cat", weight=0),
    turn("user", "say dog", weight=1),
    turn("assistant", "dog", weight=1),
    turn("user", "say sun"),
    turn("assistant", "sun please", loss=False),
    turn("user", "say no"),
    turn("assistant", "no thanks", train=True),
]


def labels_by_hand(tokenizer, turns, trained) -> list[str]:
    """Write the template by hand and return the trained parts of its text, token by token.

    trained: a function of (turn, is_header).
    """
    words: list[str] = []
    for message in turns:
        header = f"{ROLES[message['role']]}:"
        end = tokenizer.eos_token if message["role"] == "assistant" else "\n"
        for text, is_header in ((header, True), (message["content"] + end, False)):
            if trained(message, is_header):
                words.append(text)
    return words


def labelled_text(tokenizer, labels) -> str:
    return tokenizer.decode([i for i in labels if i != -100])


def is_marked(message) -> bool:
    return not all(message.get(key, 1) for key in ("weight", "train", "loss"))


def is_assistant(message, is_header) -> bool:
    return message["role"] == "assistant" and not is_header and not is_marked(message)


def not_marked(message, is_header) -> bool:
    return is_header or not is_marked(message)


def without_mark(message):
    return {key: value for key, value in message.items() if key in ("role", "content")}


UNMARKED_USER = [without_mark(CHAT[0]), *CHAT[1:]]
SPLIT = {"prompt": CHAT[:3], "completion": CHAT[3:]}


@pytest.mark.parametrize(
    ("row", "options", "trained", "from_turn"),
    [
        ({"messages": UNMARKED_USER}, {}, not_marked, 0),
        ({"messages": CHAT}, {"assistant_only_loss": True}, is_assistant, 0),
        (SPLIT, {}, not_marked, 3),
        (SPLIT, {"assistant_only_loss": True}, is_assistant, 3),
        (
            {"prompt": UNMARKED_USER[:3], "completion": CHAT[3:]},
            {"completion_only_loss": False},
            not_marked,
            0,
        ),
    ],
    ids=["messages", "assistant_only", "completion", "completion assistant_only", "with prompt"],
)
def test_labels_of_a_run_leave_marked_turns_out(
    recipe_data, make_recipe, tmp_path, row, options, trained, from_turn
):
    plain = {name: [without_mark(m) for m in turns] for name, turns in row.items()}
    rows = write_jsonl(tmp_path / "chat.jsonl", [row, plain])
    recipe_data["data"] = {"train": {"path": str(rows)}, "max_length": 128}
    recipe_data["sft"] = options
    recipe = make_recipe(recipe_data).recipe
    trainer, inputs = trainer_of(recipe, "sft")
    tokenizer = load_tokenizer(recipe.model)
    prepared = {len(r["labels"]) - r["labels"].count(-100): r for r in trainer.train_dataset}
    marked, unmarked = (prepared[count] for count in sorted(prepared))
    assert marked["input_ids"] == unmarked["input_ids"]
    turns = [message for part in row.values() for message in part]
    expected = labels_by_hand(
        tokenizer,
        turns,
        lambda m, header: trained(m, header) and turns.index(m) >= from_turn,
    )
    # The header of the first turn of a completion is part of the generation prompt.
    text = "".join(expected).removeprefix("A:" if from_turn else "")
    assert labelled_text(tokenizer, marked["labels"]).removeprefix("<s>") == text
    assert all(
        label in (-100, token)
        for label, token in zip(marked["labels"], marked["input_ids"], strict=True)
    )
    # The token view shows the same labels, of the row with marks and of the other.
    shown = first_row_view(recipe, recipe.sft, tokenizer, inputs.train).as_dict()["parts"]
    tokens = [token for part in shown.values() for token in part["tokens"]]
    assert [token_id if on else -100 for _, token_id, on in tokens] == marked["labels"]
    assert inputs.train.notes == ["1 rows: turns with weight, train or loss 0 are not trained on"]
    assert "unread" not in {finding.name for finding in inputs.train.findings}


def load(recipe_data, make_recipe, tmp_path, name, rows):
    path = write_jsonl(tmp_path / "marked.jsonl", rows)
    recipe_data["data"] = {"train": {"path": str(path)}, "max_length": 128}
    recipe = make_recipe(recipe_data).recipe
    return load_run_datasets(recipe, recipe.methods[name], load_tokenizer(recipe.model))


@pytest.mark.parametrize(
    ("name", "row", "cause"),
    [
        ("sft", {"messages": CHAT}, "a user turn that is marked"),
        (
            "dpo",
            {
                "prompt": CHAT[:1],
                "chosen": [turn("assistant", "a", weight=0)],
                "rejected": [turn("assistant", "b")],
            },
            "a turn of 'chosen' that is marked",
        ),
        (
            "kto",
            {"messages": [CHAT[2], turn("assistant", "a", train=False)], "label": True},
            "a turn of 'completion' that is marked",
        ),
    ],
)
def test_marks_that_a_method_cannot_honour_are_refused(
    recipe_data, make_recipe, tmp_path, name, row, cause
):
    with pytest.raises(DataError, match=cause) as caught:
        load(recipe_data, make_recipe, tmp_path, name, [row])
    assert [problem.code for problem in caught.value.problems] == ["DAT010"]


def test_marks_in_the_prompt_of_pairs_change_nothing(recipe_data, make_recipe, tmp_path):
    sides = {"chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}
    inputs = load(recipe_data, make_recipe, tmp_path, "dpo", [{"prompt": CHAT[:3], **sides}])
    assert inputs.train.rows[0]["prompt"] == [without_mark(m) for m in CHAT[:3]]
    assert "masked_turns" not in inputs.train.rows.column_names


def test_rows_without_a_trained_turn_are_dropped(recipe_data, make_recipe, tmp_path):
    rows = [{"messages": CHAT[2:4]}] * 30 + [{"messages": [CHAT[2], CHAT[1]]}]
    inputs = load(recipe_data, make_recipe, tmp_path, "sft", rows)
    (dropped,) = inputs.train.as_dict()["dropped"].items()
    assert dropped == ("all assistant turns are marked as not trained", 1)
    assert "nothing_trained" in {finding.name for finding in inputs.train.findings}


def test_marks_need_a_template_that_marks_assistant_turns(recipe_data, make_recipe, tmp_path):
    recipe_data["model"]["chat_template"] = (
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    with pytest.raises(RecipeError, match="does not mark assistant turns") as caught:
        load(recipe_data, make_recipe, tmp_path, "sft", [{"messages": UNMARKED_USER}])
    assert (caught.value.problems[0].path, caught.value.problems[0].code) == (
        "model.chat_template",
        "MDL017",
    )
    # Marks of 1 need nothing.
    load(recipe_data, make_recipe, tmp_path, "sft", [{"messages": CHAT[2:4]}])
