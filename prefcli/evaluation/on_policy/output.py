"""The files of `prefcli pairs`, each complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from prefcli import __version__
from prefcli.checkpoints.atomic import write_text
from prefcli.data.row_writer import row_writer
from prefcli.errors import RecipeError
from prefcli.evaluation.on_policy.pairing import ScoredPrompt

_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class OutputFiles:
    """The files of one output."""

    rows: Path

    @property
    def samples(self) -> Path:
        """All completions with their scores, which `judge.scores` reads."""
        return self.rows.with_suffix(".samples.jsonl")

    @property
    def provenance(self) -> Path:
        """How the rows were made. Not JSON: a folder of data may hold it."""
        return self.rows.with_suffix(".provenance.yaml")

    @property
    def partial_samples(self) -> Path:
        return self.rows.with_suffix(".samples.partial")

    @property
    def partial_scores(self) -> Path:
        return self.rows.with_suffix(".scores.partial")

    @property
    def free_bytes(self) -> int:
        """Free space on the disk."""
        folder = self.rows.absolute().parent
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def write_samples(self, prompts: Sequence[ScoredPrompt]) -> None:
        """Write all completions as `judge.scores` reads them. Raises RecipeError."""

        def rows() -> Iterator[dict[str, Any]]:
            for prompt in prompts:
                yield {
                    **prompt.columns,
                    "responses": [one.text for one in prompt.candidates],
                    "rewards": [one.score for one in prompt.candidates],
                    "tokens": [one.length for one in prompt.candidates],
                    "ended": [one.ended for one in prompt.candidates],
                }

        with _complete(self.samples) as written:
            row_writer(self.samples.suffix)(written, rows)

    def write_rows(self, rows: Sequence[dict[str, Any]], provenance: Mapping[str, Any]) -> None:
        """Write the rows, and how they were made. Raises RecipeError and DataError."""
        document = {
            "prefcli": __version__,
            "versions": {name: version(name) for name in _LIBRARIES},
            "file": self.rows.name,
            **provenance,
        }
        with _complete(self.rows) as written:
            row_writer(self.rows.suffix)(written, lambda: iter(rows))
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
            write_text(self.provenance, text)

    def remove_partial(self) -> None:
        """Delete what only an unfinished start needs."""
        for path in (self.partial_scores, self.partial_samples):
            path.unlink(missing_ok=True)


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Yield a path to write; the file appears at `path` once the block ends. Raises RecipeError."""
    written = path.with_name(path.name + ".writing")
    try:
        yield written
        os.replace(written, path)
    except OSError as error:
        raise RecipeError(
            f"can't write {path}: {error.strerror}",
            code="RCP027",
            hint="free space on the disk, and run the same command again: completions and scores "
            "are not lost",
        ) from None
    finally:
        written.unlink(missing_ok=True)
