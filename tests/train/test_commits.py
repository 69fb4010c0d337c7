"""Which commit of the hub was used: read from the cache, kept in run.json, told when it moves."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from prefcli.data.sources import read
from prefcli.errors import UnreachableError
from prefcli.hub.cache import commit_of, missing_files, snapshot
from prefcli.hub.commits import commits, differences
from prefcli.hub.pinned import pin
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source

OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Into a cache, as the hub's client would: put(kind, name, revision, commit, **files)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(kind: str, name: str, revision: str, commit: str, **files) -> None:
        folder = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "snapshots" / commit / file.replace("__", ".")).write_text(text)

    return put


def recipe(**sections) -> Recipe:
    base = {
        "output_dir": "x",
        "model": {"name_or_path": "org/adapter", "adapter": "continue"},
        "dpo": {},
        "data": {"train": [{"path": "org/pairs", "revision": "v2"}, {"path": "a.jsonl"}]},
    }
    return Recipe.model_validate(base | sections)


def entry(kind: str, name: str, revision: str | None, commit: str | None) -> dict:
    return {"kind": kind, "name": name, "revision": revision, "commit": commit}


ADAPTER = {"base_model_name_or_path": "org/base", "revision": None}


def test_every_repository_with_its_commit(put):
    put("model", "org/adapter", "main", OLD, adapter_config__json=ADAPTER)
    put("model", "org/base", "main", NEW)
    put("dataset", "org/pairs", "v2", OLD)
    reference = {"name_or_path": "org/other", "revision": NEW}
    assert commits(recipe(reference=reference)) == [
        entry("model", "org/adapter", None, OLD),
        entry("model", "org/base", None, NEW),
        entry("model", "org/other", NEW, NEW),
        entry("dataset", "org/pairs", "v2", OLD),
    ]


def test_the_base_of_an_adapter_that_is_here(put, tmp_path):
    put("model", "org/base", "main", NEW)
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    here = {"name_or_path": str(tmp_path), "adapter": "continue"}
    found = commits(recipe(model=here, data={"train": {"path": "a.jsonl"}}))
    assert found == [entry("model", "org/base", None, NEW)]


def test_an_adapter_on_itself_ends(put):
    put(
        "model",
        "org/adapter",
        "main",
        OLD,
        adapter_config__json={"base_model_name_or_path": "org/adapter"},
    )
    assert len(commits(recipe())) == 2


def test_what_was_never_asked_for_is_unknown(put):
    put("model", "org/adapter", "main", OLD)
    assert commit_of("org/adapter", "model", "v9") is None
    assert commit_of("org/none", "model", None) is None
    assert snapshot("org/none", "model", NEW) is None


def test_what_moved_is_told(put, capsys):
    before = [
        entry("model", "org/adapter", None, OLD),
        entry("dataset", "org/pairs", "v2", OLD),
        entry("dataset", "org/gone", None, OLD),
    ]
    put("model", "org/adapter", "main", NEW)
    put("dataset", "org/pairs", "v2", OLD)
    assert differences(before, commits(recipe())) == [
        f"the model org/adapter was {OLD} and is {NEW} now"
    ]
    pin(recipe(), {"hub": before})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: the model org/adapter was {OLD} and is {NEW} now")
    pin(recipe(), {})
    assert capsys.readouterr().out == ""


def test_a_dataset_of_the_very_revision(put):
    """datasets' own cache would give whichever was prepared last."""
    for revision, commit, chosen in (("main", OLD, "old"), ("v2", NEW, "new")):
        rows = json.dumps({"prompt": "p", "chosen": chosen, "rejected": "r"})
        put("dataset", "org/pairs", revision, commit, train__jsonl=rows)
    assert read(Source(path="org/pairs"), "data.train")["chosen"] == ["old"]
    assert read(Source(path="org/pairs", revision="v2"), "data.train")["chosen"] == ["new"]
    with pytest.raises(UnreachableError) as caught:
        read(Source(path="org/pairs", revision="v3"), "data.train")
    (problem,) = caught.value.problems
    assert "org/pairs at v3, and the cache lacks that revision" in problem.message
    assert "prefcli download" in problem.hint


def test_a_part_of_a_dataset(put):
    card = "---\nconfigs: [{config_name: a, data_files: a.jsonl}]\n---\n"
    put("dataset", "org/pairs", "main", OLD, README__md=card)
    with pytest.raises(UnreachableError, match="DAT008"):
        read(Source(path="org/pairs"), "data.train")


def test_an_adapter_lacks_other_files_than_a_model(put):
    put("model", "org/adapter", "main", OLD, adapter_config__json=ADAPTER)
    assert missing_files("org/adapter", None) == ["adapter_model.safetensors"]
    put("model", "org/adapter", "main", OLD, adapter_model__safetensors="")
    assert missing_files("org/adapter", None) == []
