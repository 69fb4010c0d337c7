"""Pages, recipes, scripts and source are free of the phrases that tests.support.prose lists."""

from __future__ import annotations

import pytest

from tests.support.prose import files, findings
from tests.support.source_tree import ROOT, source_files, source_folders

SHELL_SCRIPTS = [p.relative_to(ROOT).as_posix() for p in sorted(ROOT.glob("scripts/**/*.sh"))]
PAGES = ["README.md", "CHANGELOG.md", "docs", "recipes", *SHELL_SCRIPTS]


@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_banned_phrase(name):
    assert [line for path in files(ROOT / name) for line in findings(path)] == []


@pytest.mark.parametrize("folder", source_folders())
def test_source_folder_has_no_banned_phrase(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [line for path in source_files(folder) for line in findings(path)] == []
