"""Every command: parse, call one function, print, choose the exit code."""

from __future__ import annotations

import sys
import traceback

from prefcli.cli.app import app, print_json
from prefcli.cli.arguments import refuse_secrets
from prefcli.console import is_main_process
from prefcli.errors import ExitCode, PrefcliError
from prefcli.secrets import redact
from prefcli.telemetry import no_telemetry

# Each registers its commands, in the order of `prefcli --help`.
# isort: off
from prefcli.cli import methods as methods
from prefcli.cli import fetch as fetch
from prefcli.cli import data as data
from prefcli.cli import measures as measures
from prefcli.cli import report as report
from prefcli.cli import slurm as slurm
from prefcli.cli import recipes as recipes
# isort: on


def main() -> None:
    """Run the command line; the one place where errors are printed and exit codes chosen."""
    no_telemetry()
    try:
        refuse_secrets(sys.argv[1:])
        app()
    except PrefcliError as error:
        if is_main_process():
            for problem in error.problems:
                print(redact(f"error: {problem}"), file=sys.stderr)
        if "--json" in sys.argv:
            problems = [problem.as_dict() for problem in error.problems]
            print_json({"exit_code": int(error.exit_code), "problems": problems})
        sys.exit(error.exit_code)
    except Exception:  # a bug of ours; what it quotes may be anything
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(ExitCode.BUG)
