"""A dry-run without the hub: it checks what is cached, and lists what is missing."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from prefcli.hub.cache import missing_files
from tests.support.tiny_runs import write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Use an empty cache; return a function that stores files of org/model in it."""
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


def files_of(model, *except_: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in model.iterdir() if file.name not in except_}


WEIGHTS = "model.safetensors (or its shards)"


def test_dry_run_of_an_uncached_model_is_inconclusive(recipe_data, dry_run, cache):
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, printed = dry_run(recipe_data)
    assert (code, document["exit_code"]) == (2, 2)
    assert document["will_run"] is None
    assert document["problems"] == []
    (unchecked,) = document["unchecked"]
    assert unchecked["path"] == "model.name_or_path"
    assert f"lacks config.json, tokenizer.json, {WEIGHTS}" in unchecked["message"]
    assert "prefcli download" in unchecked["hint"]
    assert "recipe.yaml:" in unchecked["place"]
    assert printed.splitlines()[-1].startswith("inconclusive: ")
    assert "memory" not in document


def test_dry_run_without_a_tokenizer_checks_the_data(
    recipe_data,
    dry_run,
    cache,
    tmp_path,
):
    recipe_data["model"]["name_or_path"] = "org/model"
    _, _, printed = dry_run(recipe_data)
    assert "24 rows" in printed
    wrong = [{"question": "a", "chosen": "b", "rejected": "c"}]
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "q.jsonl", wrong))
    code, document, printed = dry_run(recipe_data)
    assert (code, document["will_run"]) == (4, False)
    assert document["problems"][0]["code"].startswith("DAT")
    assert len(document["unchecked"]) == 1
    assert printed.splitlines()[-1] == "will not run: 1 problem above"


def test_dry_run_of_an_uncached_dataset_is_inconclusive(recipe_data, dry_run, cache):
    recipe_data["data"]["train"]["path"] = "org/pairs"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, None)
    (unchecked,) = document["unchecked"]
    assert unchecked["path"] == "data.train.path"
    assert "prefcli download" in unchecked["hint"]
    # The model is here, and the memory of a step depends on nothing else.
    assert document["parameters"] > 0
    assert document["memory"]["tokens"] == 64
    assert "steps" not in document


@pytest.mark.parametrize(
    ("cached", "missing"),
    [
        (["config.json"], f"tokenizer.json, {WEIGHTS}"),
        (["config.json", "tokenizer.json", "tokenizer_config.json"], WEIGHTS),
        (["tokenizer.json", "tokenizer_config.json"], f"config.json, {WEIGHTS}"),
        (["config.json", "model.safetensors"], "tokenizer.json"),
    ],
)
def test_dry_run_lists_the_files_missing_in_the_cache(
    recipe_data,
    dry_run,
    cache,
    tiny_model,
    cached,
    missing,
):
    cache(**{name: (tiny_model / name).read_bytes() for name in cached})
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["will_run"]) == (2, None)
    messages = {problem["message"] for problem in document["unchecked"]}
    assert messages == {f"the hub is unreachable for org/model, and the cache lacks {missing}"}


def test_missing_files_lists_every_missing_shard(cache):
    shards = {"a": "model-1-of-3.safetensors", "b": "model-2-of-3.safetensors"}
    cache(**{"model.safetensors.index.json": {"weight_map": shards | {"c": shards["b"]}}})
    cache(**{"model-1-of-3.safetensors": b""})
    assert missing_files("org/model", None) == [
        "config.json",
        "tokenizer.json",
        "model-2-of-3.safetensors",
    ]
    assert missing_files("org/model", None, weights=False) == ["config.json", "tokenizer.json"]
    assert missing_files("org/model", "v2")[-1] == WEIGHTS  # that revision is missing


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_missing_files_accepts_any_tokenizer_file(cache, name):
    cache(**{name: b"", "config.json": b"", "model.safetensors": b""})
    assert missing_files("org/model", None) == []


def test_dry_run_with_a_full_cache_will_run(recipe_data, dry_run, cache, tiny_model):
    cache(**files_of(tiny_model))
    recipe_data["model"]["name_or_path"] = "org/model"
    code, document, _ = dry_run(recipe_data)
    assert (code, document["unchecked"], document["problems"]) == (0, [], [])
    assert document["will_run"] is True


def test_dry_run_problems_take_precedence_over_unchecked(recipe_data, dry_run, cache, tmp_path):
    recipe_data["model"]["name_or_path"] = "org/model"
    recipe_data["training"] |= {"global_batch_size": 12, "per_device_train_batch_size": 4}
    code, document, printed = dry_run(recipe_data, "dpo", "--devices", "5")
    assert (code, document["will_run"]) == (2, False)
    assert [p["path"] for p in document["problems"]] == ["training.global_batch_size"]
    assert len(document["unchecked"]) == 1
    assert "not checked: " in printed


def test_dry_run_of_an_uncached_reference_is_inconclusive(
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
