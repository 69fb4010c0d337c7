"""Scores of a file's rows while they are computed: a file that a second start continues."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prefcli.errors import RecipeError
from prefcli.text import first_line

_SUFFIX = ".partial"


class PartialScores:
    """One line per row of the data, after a line with the settings. Only whole lines count.

    It is locked until it is closed.
    """

    def __init__(self, output: Path, key: str) -> None:
        """Open the file next to the output, and cut a torn line off. Raises RecipeError.

        key: a digest of everything that the scores depend on.
        """
        self.path = output.with_suffix(_SUFFIX)
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise RecipeError(
                f"can't write {self.path}: {error.strerror}",
                code="RCP027",
                hint="name another file with --output",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                self._file.close()
                raise RecipeError(
                    f"another prefcli process is writing {self.path}",
                    code="RUN012",
                    hint="wait for it to end, or name another file with --output",
                ) from None
            # Some network file systems have no locks.
        self.done = self._resume(key)
        """Rows whose scores are in the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, rows: Sequence[Sequence[dict[str, Any]]], groups: Sequence[int]) -> None:
        """Append the scores of the next rows in one write.

        rows: the numbers of each response, by row. groups: a key of each row's prompt.
        """
        lines = [
            json.dumps({"group": group, "scores": scores})
            for scores, group in zip(rows, groups, strict=True)
        ]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        self.done += len(lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what was added for each row."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """Delete the file: the output has everything."""
        self.path.unlink(missing_ok=True)

    def _resume(self, key: str) -> int:
        """Return the number of whole rows, or start the file. Raises RecipeError."""
        self._file.seek(0)
        end = 0
        done = -1  # the settings
        for line in self._file:
            if not line.endswith(b"\n") or not self._is_valid(line, key, first=done < 0):
                break
            end += len(line)
            done += 1
        self._file.truncate(end)
        self._file.seek(end)
        if done < 0:
            self._file.write(json.dumps({"key": key}).encode() + b"\n")
            self._file.flush()
        return max(done, 0)

    def _is_valid(self, line: bytes, key: str, *, first: bool) -> bool:
        try:
            content = json.loads(line)
        except ValueError as error:
            if first:
                raise self._of_others(f"can't be read: {first_line(error)}") from None
            return False
        if first and content.get("key") != key:
            raise self._of_others("holds scores of another model, other data or other settings")
        return True

    def _of_others(self, what: str) -> RecipeError:
        self._file.close()
        return RecipeError(
            f"{self.path} {what}",
            code="RUN102",
            hint="start with the same arguments to continue it, delete it, or name another "
            "file with --output",
        )
