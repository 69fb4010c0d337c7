"""Mistakes that users make, with the code, the place and the cure that prefcli answers with.

Each file of tests/mistakes is a list of them. The folder in which they are made has a valid recipe,
ok.yaml, and its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "mistakes"
OK = """\
output_dir: runs/m
model:
  name_or_path: models/tiny
dpo:
  beta: 0.1
data:
  train: {path: pairs.jsonl}
  eval: {path: held_out.jsonl}
  max_length: 64
training: {max_steps: 2}
"""


@dataclass(frozen=True)
class Mistake:
    """One mistake and the answer to it."""

    mistake: str
    code: str
    place: str
    """The start of the problem's place."""
    cure: str
    """A part of the hint, or of a message that has the cure."""
    exit: int = 2
    command: str = ""
    change: tuple[str, str] | None = None
    """A text of ok.yaml, and its replacement."""
    append: str = ""
    """More lines of ok.yaml."""
    text: str | None = None
    """The whole recipe, or the content of `file`."""
    file: str | None = None
    """A data file in place of pairs.jsonl."""
    encoding: str = "utf-8"
    source: str | None = None
    """data.train in the recipe; by default `file`."""
    method: str = "dpo"

    def make(self, folder: Path) -> None:
        """Write ok.yaml with the mistake, and the files that it names, into a folder."""
        recipe = OK if self.text is None or self.file else self.text
        if self.change is not None:
            old, new = self.change
            assert old in recipe, old
            recipe = recipe.replace(old, new)
        if self.append:
            recipe += f"{self.append}\n"
        if self.file is not None:
            (folder / self.file).parent.mkdir(exist_ok=True)
            (folder / self.file).write_text(f"{self.text}\n" * bool(self.text), self.encoding)
        if self.file is not None or self.source is not None:
            source = self.source or f"{{path: {self.file}}}"
            recipe = recipe.replace("{path: pairs.jsonl}", source)
        recipe = recipe.replace("dpo:\n  beta", f"{self.method}:\n  beta")
        (folder / "ok.yaml").write_text(recipe, "utf-8")
        (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        (folder / "held_out.jsonl").write_text('{"prompt": "d", "chosen": "e", "rejected": "f"}\n')
        (folder / "folder").mkdir(exist_ok=True)

    def check(self, code: int, printed: str) -> None:
        """Compare the exit code and what was printed with the answer that is expected."""
        assert "Traceback" not in printed
        assert code == self.exit, printed
        problems = [text for text in printed.split("error: ") if text.startswith(self.place)]
        assert any(f"[{self.code}]" in text and self.cure in text for text in problems), printed


def mistakes(file: str) -> pytest.MarkDecorator:
    """The parameter `mistake` for each entry of a file of tests/mistakes."""
    entries = yaml.safe_load((FOLDER / file).read_text("utf-8"))
    cases = [
        Mistake(**{**entry, "change": tuple(entry["change"])} if "change" in entry else entry)
        for entry in entries
    ]
    return pytest.mark.parametrize("mistake", cases, ids=[case.mistake for case in cases])
