"""Results while they are computed: a file that a second start continues."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prefcli import preemption
from prefcli.errors import InterruptedRunError, PreemptedError, RecipeError
from prefcli.text import first_line

_LONGEST = 60
"""Characters of a setting that are shown."""


@contextmanager
def stoppable(
    partial: PartialFile, done: Callable[[], int], total: int, what: str
) -> Iterator[None]:
    """Turn a signal or Ctrl-C into an error that says how to continue.

    done: returns how many of `total` the file has. what: a clause between these numbers and the
    file.
    """
    try:
        yield
    except (preemption.Stop, KeyboardInterrupt) as stop:
        kind = PreemptedError if isinstance(stop, preemption.Stop) else InterruptedRunError
        raise kind(
            f"stopped after {done():,} of {total:,} {what} are in {partial.path}; run the same "
            "command again to continue",
            code="RUN103",
        ) from None


class PartialFile:
    """JSON values, one per line, after a line with the settings. Only complete lines count.

    It is locked until it is closed.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], cure: str, *, overwrite: bool = False
    ) -> None:
        """Open the file, and cut a torn line off. Raises RecipeError.

        settings: everything that the results depend on. cure: the command's way to start over.
        overwrite: start the file again if it has results of other settings.
        """
        self.path = path
        self._cure, self._overwrite = cure, overwrite
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
        # As they are read back.
        self._resume(json.loads(json.dumps(settings)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def add(self, value: Any) -> None:
        """Append a value in one write."""
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RecipeError(
                f"can't write {self.path}: {error.strerror}",
                code="RCP027",
                hint="free space on the disk, and run the same command again to continue",
            ) from None

    def values(self) -> Iterator[Any]:
        """Yield what was added."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """Delete the file: the output has everything."""
        self.path.unlink(missing_ok=True)

    def _resume(self, settings: dict[str, Any]) -> None:
        """Check the settings and cut a torn line off, or start the file. Raises RecipeError."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n") or not self._is_valid(line, settings, first=not end):
                break
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self.add({"settings": settings})

    def _is_valid(self, line: bytes, settings: dict[str, Any], *, first: bool) -> bool:
        """Check for a value; the first has to be these settings. Raises RecipeError."""
        problem = _problem(line, settings) if first else None
        if problem is not None and not self._overwrite:
            raise self._of_others(problem)
        try:
            json.loads(line)
        except ValueError:
            return False
        return problem is None

    def _of_others(self, what: str) -> RecipeError:
        self._file.close()
        return RecipeError(
            f"{self.path} {what}",
            code="RUN102",
            hint="start with the same settings to continue it, delete it, or " + self._cure,
        )


def _problem(line: bytes, settings: Mapping[str, Any]) -> str | None:
    """Compare the first line with the settings; return what is wrong."""
    try:
        content = json.loads(line)
    except ValueError as error:
        return f"can't be read: {first_line(error)}"
    before = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(before, dict):
        return "was not written by this version of prefcli"
    if changes := _changes(before, settings):
        return f"holds results of other settings: {'; '.join(changes)}"
    return None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each setting that differs."""
    return [
        f"{key} was {_shown(before.get(key))} there and is {_shown(now.get(key))} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
