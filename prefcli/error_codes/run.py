"""RUN: run folders, resume and publishing."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RUN_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "RUN100",
        "not-a-run-folder",
        "`prefcli report` reads run folders, and the path is not in one: there is neither run.json "
        "nor metrics.jsonl.",
        "prefcli report runs",
        "Name the output_dir of a run, or a file or folder in it.",
    ),
)
