"""Paths and identifiers are free of the words that tests.support.names lists."""

from __future__ import annotations

import pytest

from tests.support.names import findings
from tests.support.source_tree import ROOT, source_files, source_folders


@pytest.mark.parametrize("folder", source_folders())
def test_source_folder_has_no_banned_name(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [line for path in source_files(folder) for line in findings(path)] == []
