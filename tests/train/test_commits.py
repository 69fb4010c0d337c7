"""The commits of hub repositories: read from the cache, saved in run.json, compared on resume."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from prefcli.data.sources import read
from prefcli.errors import UnreachableError
from prefcli.hub.cache import commit_of, missing_files, snapshot
from prefcli.hub.commits import changed_commits, record_commits, used_commits
from prefcli.recipe.offline import hub_names
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source

OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes to a cache like huggingface_hub: put(kind, name, revision, commit, **files)."""
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


def test_used_commits_lists_every_repository(put):
    put("model", "org/adapter", "main", OLD, adapter_config__json=ADAPTER)
    put("model", "org/base", "main", NEW)
    put("dataset", "org/pairs", "v2", OLD)
    reference = {"name_or_path": "org/other", "revision": NEW}
    assert used_commits(recipe(reference=reference)) == [
        entry("model", "org/adapter", None, OLD),
        entry("model", "org/base", None, NEW),
        entry("model", "org/other", NEW, NEW),
        entry("dataset", "org/pairs", "v2", OLD),
    ]


def test_used_commits_of_a_local_adapter_lists_its_base(put, tmp_path):
    put("model", "org/base", "main", NEW)
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    model = {"name_or_path": str(tmp_path), "adapter": "continue"}
    commits = used_commits(recipe(model=model, data={"train": {"path": "a.jsonl"}}))
    assert commits == [entry("model", "org/base", None, NEW)]


def test_used_commits_of_an_adapter_on_itself_terminates(put):
    put(
        "model",
        "org/adapter",
        "main",
        OLD,
        adapter_config__json={"base_model_name_or_path": "org/adapter"},
    )
    assert len(used_commits(recipe())) == 2


def test_commit_of_a_repository_outside_the_cache_is_none(put):
    put("model", "org/adapter", "main", OLD)
    assert commit_of("org/adapter", "model", "v9") is None
    assert commit_of("org/none", "model", None) is None
    assert snapshot("org/none", "model", NEW) is None


EARLIER = [
    entry("model", "org/adapter", None, OLD),
    entry("dataset", "org/pairs", "v2", OLD),
    entry("dataset", "org/gone", None, OLD),
]


@pytest.fixture
def moved(put):
    """A cache in which only org/adapter is at another commit than in EARLIER."""
    put("model", "org/adapter", "main", NEW)
    put("dataset", "org/pairs", "v2", OLD)


def test_changed_commits_names_old_and_new_commit(moved):
    (line,) = changed_commits(EARLIER, used_commits(recipe()))
    assert line == f"the model org/adapter was at commit {OLD} and is now at {NEW}"


def test_record_commits_warns_of_a_changed_commit(moved, capsys):
    assert record_commits(recipe(), {"hub": EARLIER}) == used_commits(recipe())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: the model org/adapter was at")


def test_record_commits_of_a_new_run_does_not_warn(moved, capsys):
    record_commits(recipe(), {})
    assert capsys.readouterr().out == ""


def test_read_dataset_uses_the_given_revision(put):
    """The cache of datasets would return the revision that was prepared last."""
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


def test_read_incomplete_dataset_is_refused(put):
    card = "---\nconfigs: [{config_name: a, data_files: a.jsonl}]\n---\n"
    put("dataset", "org/pairs", "main", OLD, README__md=card)
    with pytest.raises(UnreachableError, match="DAT008"):
        read(Source(path="org/pairs"), "data.train")


def test_missing_files_of_an_adapter_are_its_weights(put):
    put("model", "org/adapter", "main", OLD, adapter_config__json=ADAPTER)
    assert missing_files("org/adapter", None) == ["adapter_model.safetensors"]
    put("model", "org/adapter", "main", OLD, adapter_model__safetensors="")
    assert missing_files("org/adapter", None) == []


def test_used_commits_has_the_named_tokenizer(put):
    put("model", "org/model", "main", OLD)
    put("model", "org/tokens", "v1", NEW)
    model = {"name_or_path": "org/model", "tokenizer": "org/tokens", "tokenizer_revision": "v1"}
    assert entry("model", "org/tokens", "v1", NEW) in used_commits(recipe(model=model))
    assert "org/tokens" in hub_names(recipe(model=model))
