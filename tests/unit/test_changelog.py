"""Tables of the changelog: old names are gone, new ones exist."""

from __future__ import annotations

import re
from pathlib import Path

from prefcli.recipe.suggestions import all_paths

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, list[str]]:
    """Old name: new names, of the block below a heading."""
    section = CHANGELOG.partition(f"### {heading}\n")[2].partition("\n###")[0]
    rows = re.findall(r"^(\S.*?) +-> (.*)$", section, re.M)
    return {old: new.split(", ") for old, new in rows}


def is_module(name: str) -> bool:
    path = ROOT / "prefcli" / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_renamed_keys_exist_under_their_new_names():
    keys = {old: new for old, (new,) in table("Renamed keys and flags").items() if " " not in old}
    known = set(all_paths())
    for old, new in keys.items():
        if not old.startswith("--"):
            assert new.replace("*", "collapse") in known, new
            assert old.replace("*", "collapse") not in known, old


def test_renamed_modules_exist_under_their_new_names():
    modules = table("Renamed modules")
    assert len(modules) > 100
    assert [name for new in modules.values() for name in new if not is_module(name)] == []
