"""The generated pages of the documentation are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from scripts.make_reference_docs import PAGES

ROOT = Path(__file__).parents[2]
TYPER = re.search(r"^typer==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_current(name):
    assert TYPER is not None
    if name == "cli.md" and typer.__version__ != TYPER[1]:
        pytest.skip(f"written with typer {TYPER[1]}")
    page = (ROOT / "docs" / name).read_text("utf-8")
    assert page == PAGES[name](), "run scripts/make_reference_docs.py"
