"""The source folders that the lint tests of prose and names check."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOTS = ("prefcli", "scripts", "tests")
EXEMPT = ("tests/support/prose.py", "tests/support/names.py")
"""Files that quote the banned words."""


def source_folders() -> list[str]:
    """The roots of source, and every folder one level below them."""
    roots = [ROOT / name for name in ROOTS]
    inner = [p for root in roots for p in root.iterdir() if any(p.glob("**/*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*roots, *inner])


def source_files(folder: str) -> list[Path]:
    """The Python files of one of `source_folders`, relative to the root of the repository.

    A root yields only the files directly in it.
    """
    pattern = "*.py" if folder in ROOTS else "**/*.py"
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))
