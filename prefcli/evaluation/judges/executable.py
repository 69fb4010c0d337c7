"""A program that judges: a JSON line per completion in, a JSON line with its score back."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from prefcli.data.digests import folder_digest
from prefcli.errors import RecipeError
from prefcli.evaluation.judges.base import Completion, Judge, Scores, to_score
from prefcli.evaluation.judges.line_process import LineProcess, NoAnswerError
from prefcli.recipe.sections import ExecutableJudge

_START = 10
"""The first answer may take this many times the limit: a program may load a model."""
_SHOWN = 100
"""Characters of a wrong answer that are shown."""
_CONTINUES = "correct the program; the same command continues where this one stopped"


class Executable(Judge):
    """A running program. It is started for the first row, and ends with `close`."""

    rows_at_once = None

    def __init__(self, options: ExecutableJudge) -> None:
        """Find the program. Raises RecipeError if it is not there."""
        self._options = options
        self._name = shlex.join(options.command)
        self._process: LineProcess | None = None
        self._numbers = count()
        if shutil.which(options.command[0]) is None:
            raise RecipeError(
                f"no such program: {options.command[0]}",
                code="JDG001",
                place="judge.executable.command",
                hint="write its path, or the interpreter first: [python, judge.py]",
            )
        self.description = f"executable {self._name}"
        self.settings = {"judge.executable.command": options.command}
        files = [Path(word).expanduser() for word in options.command]
        self.code = {str(path): folder_digest(path) for path in files if path.is_file()}

    def score(self, rows: Sequence[Completion]) -> Iterator[Scores]:
        """Send the rows, and yield each answer."""
        limit = self._options.timeout
        if rows and self._process is None:
            self._process, limit = self._start(), limit * _START
        process = self._process
        waiting: dict[int, int] = {}  # the id of a row that was sent: its index
        at = 0
        while at < len(rows) or waiting:
            assert process is not None
            while at < len(rows) and len(waiting) < self._options.concurrency:
                number = next(self._numbers)
                process.send(_request(number, rows[at]))
                waiting[number] = at
                at += 1
            oldest = rows[next(iter(waiting.values()))]
            try:
                line = process.receive(limit)
            except NoAnswerError as error:
                if error.status is None:
                    raise self._timeout(error, oldest, limit) from None
                raise self._ended(error, oldest) from None
            limit = self._options.timeout
            index, value = self._answer(line, waiting, rows)
            yield {index: to_score(value, rows[index], "the judge")}

    def close(self, *, kill: bool = False) -> None:
        """End the program. kill: without waiting for it."""
        if self._process is not None:
            self._process.close(kill=kill)
            self._process = None

    def _start(self) -> LineProcess:
        try:
            return LineProcess(self._options.command)
        except OSError as error:
            raise RecipeError(
                f"can't start {self._name}: {error.strerror}",
                code="JDG001",
                place="judge.executable.command",
                hint="make the file executable, or write the interpreter first: [python, judge.py]",
            ) from None

    def _answer(
        self, line: str, waiting: dict[int, int], rows: Sequence[Completion]
    ) -> tuple[int, Any]:
        """Return the index of the row that a line answers, and its score. Raises RecipeError."""
        oldest = next(iter(waiting))
        row = rows[waiting[oldest]]
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._invalid(line, row, "is not JSON") from None
        if not isinstance(answer, dict) or "score" not in answer:
            raise self._invalid(line, row, "is not an object with a score")
        number = answer.get("id", oldest)
        if not isinstance(number, int) or number not in waiting:
            sent = ", ".join(map(str, waiting))
            raise self._invalid(line, row, f"has an id that is not one of those waiting ({sent})")
        return waiting.pop(number), answer["score"]

    def _invalid(self, line: str, row: Completion, what: str) -> RecipeError:
        shown = repr(line[:_SHOWN]) + ("..." if len(line) > _SHOWN else "")
        return RecipeError(
            f"a line of the judge {what}: {shown}, for {row.shown}",
            code="JDG004",
            place=row.place,
            hint='print {"id": ID, "score": NUMBER} on one line, and everything else to standard '
            f"error; {_CONTINUES}",
        )

    def _timeout(self, error: NoAnswerError, row: Completion, limit: float) -> RecipeError:
        part = f" but half a line, {error.unfinished[:_SHOWN]!r}" if error.unfinished else ""
        return RecipeError(
            f"the judge gave no answer{part} within {limit:g} s for {row.shown}{error.log}",
            code="JDG003",
            place=row.place,
            hint="flush standard output after each line, or raise judge.executable.timeout; the "
            "same command continues where this one stopped",
        )

    def _ended(self, error: NoAnswerError, row: Completion) -> RecipeError:
        part = f" after half a line, {error.unfinished[:_SHOWN]!r}," if error.unfinished else ""
        return RecipeError(
            f"the judge ended ({error.status}){part} before it answered {row.shown}{error.log}",
            code="JDG002",
            place=row.place,
            hint=f"a judge reads lines until the end of its standard input; {_CONTINUES}",
        )


def _request(number: int, row: Completion) -> str:
    request = {"id": number, "prompt": row.prompt, "completion": row.text}
    return json.dumps(request)
