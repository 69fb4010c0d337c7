"""The last lines of a run: what happened, in words and figures."""

from __future__ import annotations

from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import is_main_process
from prefcli.methods import Method
from prefcli.report.run_data import read_run
from prefcli.report.verdict import verdict
from prefcli.training.callbacks.monitor_callback import MonitorCallback


def closing_lines(method: Method, folder: RunDir, steps: int, watch: MonitorCallback) -> list[str]:
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
