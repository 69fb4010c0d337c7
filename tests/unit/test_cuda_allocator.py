"""The environment variables of torch's CUDA allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from prefcli.cuda_allocator import use_expandable_segments

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture
def unset(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_use_expandable_segments_sets_the_allocator(unset):
    use_expandable_segments()
    assert [os.environ.get(name) for name in NAMES] == ["expandable_segments:True", None]


@pytest.mark.parametrize("name", NAMES)
def test_use_expandable_segments_keeps_what_the_user_has_set(unset, name):
    unset.setenv(name, "max_split_size_mb:64")
    use_expandable_segments()
    assert {key: os.environ[key] for key in NAMES if key in os.environ} == {
        name: "max_split_size_mb:64"
    }


def test_main_sets_the_allocator_before_torch_is_imported(unset):
    script = """
import atexit, os, sys
from prefcli import cli
assert "torch" not in sys.modules
atexit.register(lambda: print(os.environ["PYTORCH_ALLOC_CONF"]))
sys.argv = ["prefcli", "--version"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "expandable_segments:True", done.stderr
