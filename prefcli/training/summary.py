"""The last lines of a run: what happened, in words and figures."""

from __future__ import annotations

from prefcli.console import is_main_process
from prefcli.methods import Method
from prefcli.report.run_files import read_run
from prefcli.report.verdict import verdict
from prefcli.training.keeping.folder import RunFolder
from prefcli.training.watching.watch import Watch


def closing_lines(method: Method, folder: RunFolder, steps: int, watch: Watch) -> list[str]:
    """To be called when run.json and metrics.jsonl are complete; on the main process only they
    need be."""
    if not is_main_process():
        return []
    lines = [
        f"{steps} steps of {method.name}{watch.since} in {watch.elapsed}; "
        f"the model is in {folder.model}",
        *verdict(read_run(folder.path)).lines(),
    ]
    return [f"done: {line}" for line in lines]
