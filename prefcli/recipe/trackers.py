"""What the trackers of `logging.report_to` need here, told without importing any of them."""

from __future__ import annotations

import os
from importlib.util import find_spec

from prefcli.errors import Problem
from prefcli.recipe.sections import Logging

_PATH = "logging.report_to"
_SWITCH = "DISABLE_MLFLOW_INTEGRATION"
"""transformers' own, for machines on which mlflow is always there."""


def tracker_problems(options: Logging) -> list[Problem]:
    """One for each tracker that could not report from here."""
    problems = [
        Problem(
            f"{name} needs the package {name}",
            path=_PATH,
            hint=f"pip install {name}, or all trackers: pip install 'prefcli[trackers]'",
        )
        for name in options.report_to
        if not _installed(name)
    ]
    if "mlflow" in options.report_to and os.environ.get(_SWITCH, "").upper() == "TRUE":
        problems.append(
            Problem(
                f"the environment has {_SWITCH}={os.environ[_SWITCH]}, with which mlflow is "
                "never told anything",
                path=_PATH,
                hint="unset it, or take mlflow out of the list",
            )
        )
    return problems


def _installed(package: str) -> bool:
    """A mere folder of that name does not count, such as the wandb/ that wandb leaves behind."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
