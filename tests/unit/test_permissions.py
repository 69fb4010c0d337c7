"""A checkpoint that others could have written is not loaded."""

from __future__ import annotations

import os

import pytest

from prefcli.checkpoints.permissions import refuse_foreign
from prefcli.errors import RecipeError


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-5"
    (folder / "inner").mkdir(parents=True, mode=0o755)
    for path in (folder / "optimizer.pt", folder / "inner" / "states.pt"):
        path.write_bytes(b"pickle")
        path.chmod(0o644)
    return folder


def test_ones_own_is_taken(checkpoint):
    refuse_foreign(checkpoint)


@pytest.mark.parametrize("which", [".", "optimizer.pt", "inner", "inner/states.pt"])
def test_what_anyone_may_write_is_refused(checkpoint, which):
    path = checkpoint / which
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(RecipeError, match="anyone may write") as error:
        refuse_foreign(checkpoint)
    assert f"chmod -R go-w {checkpoint}" in str(error.value)
    assert error.value.exit_code == 2


def test_a_group_may_write_where_it_is_the_users_own(checkpoint, monkeypatch):
    path = checkpoint / "optimizer.pt"
    path.chmod(0o664)
    uid, gid = path.stat().st_uid, path.stat().st_gid
    if uid == gid:
        refuse_foreign(checkpoint)
    if os.geteuid() == 0:
        os.chown(path, uid, 12345)
        with pytest.raises(RecipeError, match="group 12345 may write"):
            refuse_foreign(checkpoint)


def test_another_users_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: checkpoint.stat().st_uid + 1)
    with pytest.raises(RecipeError, match="belongs to user"):
        refuse_foreign(checkpoint)
