"""A dry-run without the hub: what can be looked at is, and what can't is named."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from prefcli.hub.cache import missing_files
from tests.support.tiny_runs import write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a way to put files of org/model there as the hub's client would."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))

    def put(**files) -> None:
        repository = folder / "models--org--model"
        snapshot = repository / "snapshots" / COMMIT
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if isinstance(content, bytes):
                (snapshot / name).write_bytes(content)
            else:
                (snapshot / name).write_text(json.dumps(content))

    return put


def files_of(model, *but: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in model.iterdir() if file.name not in but}


WEIGHTS = "model.safetensors (or its shards)"


def test_nothing_is_known_of_a_model_on_the_hub(recipe_data, dry_run, cache):
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, said = dry_run(recipe_data)
    assert (code, document["exit_code"]) == (2, 2)
    assert document["will_run"] is None
    assert document["problems"] == []
    (unchecked,) = document["unchecked"]
    assert unchecked["path"] == "model.name_or_path"
    assert f"lacks config.json, tokenizer.json, {WEIGHTS}" in unchecked["message"]
    assert "prefcli download" in unchecked["hint"]
    assert "recipe.yaml:" in unchecked["place"]
    assert said.splitlines()[-1].startswith("inconclusive: ")
    assert "memory" not in document


def test_data_is_looked_at_without_a_tokenizer(
    recipe_data,
    dry_run,
    cache,
    tmp_path,
):
    recipe_data["model"]["name_or_path"] = "org/model"
    _, _, said = dry_run(recipe_data)
    assert "24 rows" in said
    wrong = [{"question": "a", "chosen": "b", "rejected": "c"}]
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "q.jsonl", wrong))
    code, document, said = dry_run(recipe_data)
    assert (code, document["will_run"]) == (4, False)
    assert document["problems"][0]["code"].startswith("DAT")
    assert len(document["unchecked"]) == 1
    assert said.splitlines()[-1] == "will not run: 1 problem above"


def test_a_dataset_on_the_hub(recipe_data, dry_run, cache):
    recipe_data["data"]["train"]["path"] = "org/pairs"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, None)
    (unchecked,) = document["unchecked"]
    assert unchecked["path"] == "data.train.path"
    assert "prefcli download" in unchecked["hint"]
    # The model is here, and so is sized; what a step holds depends on nothing else.
    assert document["parameters"] > 0
    assert document["memory"]["tokens"] == 64
    assert "steps" not in document


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (["config.json"], f"tokenizer.json, {WEIGHTS}"),
        (["config.json", "tokenizer.json", "tokenizer_config.json"], WEIGHTS),
        (["tokenizer.json", "tokenizer_config.json"], f"config.json, {WEIGHTS}"),
        (["config.json", "model.safetensors"], "tokenizer.json"),
    ],
)
def test_only_what_the_cache_lacks_is_named(
    recipe_data,
    dry_run,
    cache,
    tiny_model,
    there,
    lacking,
):
    cache(**{name: (tiny_model / name).read_bytes() for name in there})
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, None)
    messages = {problem["message"] for problem in document["unchecked"]}
    assert messages == {f"the hub is unreachable for org/model, and the cache lacks {lacking}"}


def test_shards_are_named_one_by_one(cache):
    shards = {"a": "model-1-of-3.safetensors", "b": "model-2-of-3.safetensors"}
    cache(**{"model.safetensors.index.json": {"weight_map": shards | {"c": shards["b"]}}})
    cache(**{"model-1-of-3.safetensors": b""})
    assert missing_files("org/model", None) == [
        "config.json",
        "tokenizer.json",
        "model-2-of-3.safetensors",
    ]
    assert missing_files("org/model", None, weights=False) == ["config.json", "tokenizer.json"]
    assert missing_files("org/model", "v2")[-1] == WEIGHTS  # that revision is not there


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_any_form_of_a_tokenizer_will_do(cache, name):
    cache(**{name: b"", "config.json": b"", "model.safetensors": b""})
    assert missing_files("org/model", None) == []


def test_a_full_cache_is_as_good_as_the_hub(recipe_data, dry_run, cache, tiny_model):
    cache(**files_of(tiny_model))
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["unchecked"], document["problems"]) == (0, [], [])
    assert document["will_run"] is True


def test_what_is_wrong_outranks_what_is_unknown(recipe_data, dry_run, cache, tmp_path):
    recipe_data["model"]["name_or_path"] = "org/model"
    recipe_data["training"] |= {"global_batch_size": 12, "per_device_train_batch_size": 4}
    code, document, said = dry_run(recipe_data, "dpo", "--devices", "5")
    assert (code, document["will_run"]) == (2, False)
    assert [p["path"] for p in document["problems"]] == ["training.global_batch_size"]
    assert len(document["unchecked"]) == 1
    assert "not checked: " in said


def test_the_references_weights_are_looked_for_too(
    recipe_data,
    dry_run,
    cache,
    tiny_model,
):
    cache(**files_of(tiny_model, "model.safetensors"))
    recipe_data["reference"] = {"name_or_path": "org/model"}
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, None)
    (unchecked,) = document["unchecked"]
    assert unchecked["path"] == "reference.name_or_path"
    assert unchecked["message"].endswith(f"lacks {WEIGHTS}")
