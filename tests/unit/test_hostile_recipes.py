"""Recipes that try to do more than say what a run is: exit 2, before anything is touched."""
# ruff: noqa: E501 - the tables have a case a line

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.recipe.paths import is_commit, is_hub_id
from tests.support.broken_recipes import GOOD, added, given, mistakes, swapped, table, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG = "a/" * 2500

PATHS = table(
    swapped("newline in output_dir", "runs/x", '"a\\nb"', "1:13", "output_dir", "RCP017"),
    swapped("escape in output_dir", "runs/x", '"a\\e[2Jb"', "1:13", "output_dir", "RCP017"),
    swapped("writing turned round", "runs/x", '"a\\u202Egpj"', "1:13", "output_dir", "RCP017"),
    swapped("line separator", "runs/x", '"a\\u2028b"', "1:13", "output_dir", "RCP017"),
    swapped("a stranger's home", "runs/x", "~no-such-user/x", "1:13", "output_dir", "RCP017"),
    swapped("a name too long", "runs/x", "a" * 256, "1:13", "output_dir", "RCP017"),
    swapped("bytes count", "runs/x", "\u00e4" * 128, "1:13", "output_dir", "RCP017"),
    swapped("a path too long", "runs/x", LONG, "1:13", "output_dir", "RCP017"),
    swapped("an escape beyond Unicode", "runs/x", '"\\U00110000"', "1:16", None, "RCP009"),
    given("newline in an override", 'output_dir="a\\nb"', "output_dir", "RCP017"),
    swapped("newline in data", "a.jsonl", '"a\\nb.jsonl"', "5:17", "data.train.path", "RCP017"),
    swapped("long data path", "a.jsonl", "a" * 300 + ".jsonl", "5:17", "data.train.path", "RCP017"),
)  # fmt: skip

NAMES = table(
    swapped("a flag as model", "some/model", "--flag", "2:23", "model.name_or_path", "RCP017"),
    swapped("two dots in a name", "some/model", "some/..", "2:23", "model.name_or_path", "RCP017"),
    swapped("a shell's dollar", "some/model", "some/$(id)", "2:23", "model.name_or_path", "RCP017"),
    swapped("a shell's semicolon", "some/model", '"a;b"', "2:23", "model.name_or_path", "RCP017"),
    swapped("a query", "some/model", "'some/model?x=1'", "2:23", "model.name_or_path", "RCP017"),
    swapped("an encoded slash", "some/model", "some/model%2e%2e", "2:23", "model.name_or_path", "RCP017"),
    swapped("a name too long for the hub", "some/model", "some/" + "a" * 92, "2:23", "model.name_or_path", "RCP017"),
    swapped("newline in a name", "some/model", '"some/model\\nx"', "2:23", "model.name_or_path", "RCP017"),
    swapped("dataset", "a.jsonl", "org/a--b", "5:17", "data.train.path", "RCP017"),
    added("reference", "reference: {name_or_path: some/.git}", "6:27", "reference.name_or_path", "RCP017"),
)  # fmt: skip

CODE = table(
    swapped("code of a branch", "some/model", "some/model, trust_remote_code: true, revision: main", "2:70", "model.revision", "RCP032 | a full commit of 40 hex digits, not 'main'"),
    swapped("code of nothing", "some/model", "some/model, trust_remote_code: true", "2:54", "model.trust_remote_code", "RCP032"),
    swapped("code of a short commit", "some/model", "some/model, trust_remote_code: true, revision: 0123abc", "2:70", "model.revision", "RCP032"),
    given("code of an unpinned reference", "reference.name_or_path=other/model", "reference.name_or_path", "RCP032", text=GOOD.replace("some/model", f"some/model, trust_remote_code: true, revision: {COMMIT}")),
)  # fmt: skip


@PATHS
def test_load_path_with_control_characters_or_too_long_is_an_error(case, tmp_path):
    case.check(tmp_path)


@NAMES
def test_load_invalid_hub_id_is_an_error(case, tmp_path):
    case.check(tmp_path)


@CODE
def test_load_unpinned_remote_code_is_an_error(case, tmp_path):
    case.check(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc",
        "a/b/c",
        "/",
        "./some model",
        "~/model",
        "Foo-BAR_foo.bar123",
    ],
)
def test_load_valid_paths_and_hub_ids(name, tmp_path):
    load(write(tmp_path, GOOD.replace("some/model", f"'{name}'")))


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("s3://bucket/rows.jsonl", "download the file"),
        ("https://example.org/rows.jsonl", "download the file"),
        ("https://huggingface.co/some/model", "write the hub id"),
        ("hf://datasets/some/rows/train.jsonl", "a file of a dataset in data_files"),
        ("file:///data/rows.jsonl", "write the path, /data/rows.jsonl"),
    ],
)
def test_load_address_is_an_error_with_its_cure(address, cure, tmp_path):
    with pytest.raises(RecipeError, match="an address is neither") as caught:
        load(write(tmp_path, GOOD.replace("some/model", f"'{address}'")))
    assert cure in str(caught.value)


@pytest.mark.parametrize("folder", ["../runs", "/tmp/x y", "runs/ü", "--x", "~/runs"])
def test_load_folders_with_uncommon_names(folder, tmp_path):
    load(write(tmp_path, GOOD.replace("runs/x", f"'{folder}'")))


def test_load_existing_folder_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistakes(tmp_path, GOOD.replace("some/model", "my model"))
    (tmp_path / "my model").mkdir()
    load(write(tmp_path, GOOD.replace("some/model", "my model")))


def test_load_remote_code_of_a_commit(tmp_path):
    text = GOOD.replace("some/model", f"some/model, trust_remote_code: true, revision: {COMMIT}")
    assert load(write(tmp_path, text)).recipe.model.trust_remote_code


def test_load_remote_code_of_a_folder_needs_no_commit(tmp_path):
    load(write(tmp_path, GOOD.replace("some/model", "./model, trust_remote_code: true")))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("foo", True),
        ("foo/bar", True),
        ("_private/x_", True),
        ("Foo-BAR_foo.bar123", True),
        ("a" * 96, True),
        ("a" * 97, False),
        ("datasets/foo/bar", False),
        (".repo_id", False),
        ("foo/-bar", False),
        ("foo/bar-", False),
        ("foo--bar", False),
        ("foo..bar", False),
        ("foo.git", False),
        ("", False),
        ("foo/", False),
        ("foo\n", False),
        ("föö", False),
    ],
)
def test_is_hub_id_agrees_with_the_hub(name, right):
    assert is_hub_id(name) is right
    # huggingface_hub is none of the heavy libraries, and so may say what it thinks itself.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not right
    else:
        assert right


def test_is_commit_accepts_full_hashes_only():
    assert is_commit(COMMIT)
    assert not any(map(is_commit, [None, "main", COMMIT[:39], COMMIT + "0", COMMIT.upper()]))
