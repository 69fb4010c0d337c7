"""Results of a part, one JSON line each, so that they survive the death of its process."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

POISONED = 70
"""Exit code of a child whose CUDA context is broken: a new one takes the cases that are left."""


class Sheet:
    """The rows of one part: {part, case, figure, value, bound, verdict}.

    verdict: ok, FAIL (of what must hold), info, or skipped with the reason as value.
    """

    def __init__(
        self,
        path: Path,
        part: str,
        *,
        skip: Collection[str] = (),
        seconds: float = 1e9,
        untimed: bool = False,
    ) -> None:
        """skip: cases that another process has done. untimed: sizes say nothing of speed."""
        self._path = path
        self._part = part
        self._skip = skip
        self._ends = time.monotonic() + seconds
        self._case = ""
        self.untimed = untimed

    @property
    def left(self) -> float:
        """Seconds until the part's process is killed."""
        return self._ends - time.monotonic()

    def run(self, case: str, body: Callable[..., None], *args: Any, needs: float = 0.0) -> None:
        """Run a case; what it raises is a row. needs: seconds without which it is skipped."""
        if case in self._skip:
            return
        self._case = case
        if self.left < needs:
            self.skipped(f"{self.left:.0f} s left, {needs:.0f} needed")
            return
        self._write(begun=True)
        began = time.monotonic()
        self._try(body, *args)
        self._write(ended=True, seconds=round(time.monotonic() - began, 2))

    def run_part(self, body: Callable[..., None], *args: Any) -> None:
        """Run a part, whose cases are run by `run`."""
        self._try(body, *args)

    def _try(self, body: Callable[..., None], *args: Any) -> None:
        try:
            body(*args)
        except Exception as error:
            traceback.print_exc()
            self._row("raised", f"{type(error).__name__}: {error}"[:600], None, "FAIL")
            if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(POISONED)

    def is_done(self, case: str) -> bool:
        return case in self._skip

    def values(self) -> dict[tuple[str, str], Any]:
        """Return the values by case and figure, including those of other processes of this part."""
        lines = map(json.loads, self._path.read_text("utf-8").splitlines())
        mine = [line for line in lines if line["part"] == self._part and "figure" in line]
        return {(line["case"], line["figure"]): line["value"] for line in mine}

    def note(self, figure: str, value: Any) -> None:
        self._row(figure, value, None, "info")

    def skipped(self, reason: str) -> None:
        self._row("skipped", reason, None, "skipped")

    def at_most(self, figure: str, value: float, bound: float, *, must: bool = True) -> None:
        # "not at most" rather than "more than": NaN must not pass.
        self._judge(figure, value, f"<= {bound:g}", value <= bound, must)

    def at_least(self, figure: str, value: float, bound: float, *, must: bool = True) -> None:
        self._judge(figure, value, f">= {bound:g}", value >= bound, must)

    def equal(self, figure: str, value: Any, expected: Any, *, must: bool = True) -> None:
        self._judge(figure, value, f"= {expected}", value == expected, must)

    def _judge(self, figure: str, value: Any, bound: str, holds: bool, must: bool) -> None:
        self._row(figure, value, bound, "ok" if holds else "FAIL" if must else "info")

    def _row(self, figure: str, value: Any, bound: str | None, verdict: str) -> None:
        self._write(figure=figure, value=value, bound=bound, verdict=verdict)

    def _write(self, **content: Any) -> None:
        line = {"part": self._part, "case": self._case, **content}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        print(json.dumps(line, default=str), flush=True)
