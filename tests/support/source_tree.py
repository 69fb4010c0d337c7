"""The folders of source that the lint tests of prose and names go through."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXEMPT = {"tests/support/prose.py", "tests/support/names.py"}
"""Files that quote what is banned."""


def source_folders() -> list[str]:
    """Every folder of prefcli and tests one level down, the two themselves, and scripts."""
    roots = [ROOT / "prefcli", ROOT / "tests"]
    inner = [p for root in roots for p in root.iterdir() if any(p.glob("**/*.py"))]
    paths = [*roots, *inner, ROOT / "scripts"]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def source_files(folder: str) -> list[Path]:
    """The Python files of one of `source_folders`, relative to the root of the repository.

    prefcli and tests stand for the files directly in them.
    """
    pattern = "*.py" if folder in ("prefcli", "tests") else "**/*.py"
    paths = sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))
    return [path for path in paths if path.as_posix() not in EXEMPT]
