"""The completions of held-out prompts with their scores, in completions.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate.utils import gather_object

from prefcli.checkpoints.atomic import writing
from prefcli.console import is_main_process
from prefcli.secrets import redact
from prefcli.training.mixins.rollouts import Answer


class CompletionsFile:
    """Writes the completions of each evaluation, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, step: int, answers: list[Answer]) -> None:
        """Write on the main process. answers: those of this process."""
        # All processes answer the last rows.
        rows = {answer["row"]: answer for answer in gather_object(answers)}
        if is_main_process():
            with writing(self._path.name), self._path.open("a", encoding="utf-8") as file:
                for number in sorted(rows):
                    line = {"step": step, **rows[number]}
                    del line["row"]
                    file.write(redact(json.dumps(line)) + "\n")
