"""A checkpoint that other users could have written is not loaded."""

from __future__ import annotations

import os

import pytest

from prefcli.checkpoints.permissions import refuse_untrusted
from tests.support.problems import stops_with


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-5"
    (folder / "inner").mkdir(parents=True, mode=0o755)
    for path in (folder / "optimizer.pt", folder / "inner" / "states.pt"):
        path.write_bytes(b"pickle")
        path.chmod(0o644)
    return folder


def test_checkpoint_of_this_user_is_accepted(checkpoint):
    refuse_untrusted(checkpoint)


@pytest.mark.parametrize("which", [".", "optimizer.pt", "inner", "inner/states.pt"])
def test_checkpoint_that_anyone_can_write_is_refused(checkpoint, which):
    path = checkpoint / which
    path.chmod(path.stat().st_mode | 0o002)
    with stops_with("RUN006") as error:
        refuse_untrusted(checkpoint)
    assert f"anyone can write {path}" in str(error.value)
    assert f"chmod -R go-w {checkpoint}" in str(error.value)
    assert error.value.exit_code == 2


def test_checkpoint_of_the_users_private_group_is_accepted_and_of_another_refused(checkpoint):
    path = checkpoint / "optimizer.pt"
    path.chmod(0o664)
    uid, gid = path.stat().st_uid, path.stat().st_gid
    if uid == gid:
        refuse_untrusted(checkpoint)
    if os.geteuid() == 0:
        os.chown(path, uid, 12345)
        with stops_with("RUN006"):
            refuse_untrusted(checkpoint)


def test_checkpoint_of_another_user_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: checkpoint.stat().st_uid + 1)
    with stops_with("RUN006"):
        refuse_untrusted(checkpoint)
