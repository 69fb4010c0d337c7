"""Small files in other tools' shapes, and what becomes of them."""

from pathlib import Path

from prefcli.recipe.load import load_text
from prefcli.recipe.migrate import migrate


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def recipe(folder: Path, text: str, name: str = "config.yaml", **options):
    """The new recipe, validated, and the migration."""
    found = migrate(write(folder, text, name), **{"devices": 1, **options})
    assert found.problems == []
    return load_text(found.text, "new.yaml").recipe, found


def problems(folder: Path, text: str, name: str = "config.yaml", **options):
    """{key: (line:col, message and hint)} of a file that can't be translated."""
    found = migrate(write(folder, text, name), **{"devices": 1, **options})
    assert found.text is None
    return {p.path: (p.place.split(name)[1].lstrip(":"), str(p)) for p in found.problems}


def swapped(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text
