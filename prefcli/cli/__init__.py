"""Every command: parse, call one function, print, choose the exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback

from prefcli import first_failure, preemption
from prefcli.cli.app import app
from prefcli.cli.arguments import refuse_renamed, refuse_secrets
from prefcli.console import is_main_process
from prefcli.cuda_allocator import use_expandable_segments
from prefcli.errors import ExitCode, PrefcliError
from prefcli.secrets import redact
from prefcli.telemetry import no_telemetry

# Each registers its commands, in the order of `prefcli --help`.
# isort: off
from prefcli.cli import train as train
from prefcli.cli import launch as launch
from prefcli.cli import download as download
from prefcli.cli import data as data
from prefcli.cli import measures as measures
from prefcli.cli import report as report
from prefcli.cli import slurm as slurm
from prefcli.cli import recipes as recipes
# isort: on


_FOR_THE_CAUSE = 0.5
"""Seconds: what fails between processes often fails because another one is gone, and the launcher
or that one says why."""


def main() -> None:
    """Run the command line; the one place where errors are printed and exit codes chosen.

    Of several processes on a machine, the first to fail speaks.
    """
    no_telemetry()
    use_expandable_segments()
    try:
        with preemption.preemption_as_error():
            preemption.install_handlers()
            refuse_secrets(sys.argv[1:])
            refuse_renamed(sys.argv[1:])
            app()
    except PrefcliError as error:
        if _speaks(error):
            for problem in error.problems:
                # To be pre-empted is no error.
                what = "" if error.exit_code == ExitCode.REQUEUE else "error: "
                _complain(f"{what}{problem}\n")
            if "--json" in sys.argv:
                problems = [problem.as_dict() for problem in error.problems]
                content = {"exit_code": int(error.exit_code), "problems": problems}
                print(redact(json.dumps(content, indent=2, default=str)), flush=True)
        sys.exit(error.exit_code)
    except Exception:  # a bug of ours; what it quotes may be anything
        if first_failure.is_distributed():
            time.sleep(_FOR_THE_CAUSE)
        if first_failure.first_to_fail():
            _complain(traceback.format_exc())
        sys.exit(ExitCode.BUG)
    finally:
        preemption.ignore_signals()


def _speaks(error: PrefcliError) -> bool:
    """Of all that stop by it, the main process; of those that it happens to alone, the first."""
    if error.exit_code == ExitCode.REQUEUE:
        # No claim: siblings are to save what they have, not to end as after a failure.
        return is_main_process()
    if not is_main_process():
        time.sleep(_FOR_THE_CAUSE)
    return first_failure.first_to_fail()


def _complain(text: str) -> None:
    who = "" if is_main_process() else f"rank {os.environ['RANK']}: "
    print(redact(who + text), end="", file=sys.stderr, flush=True)
