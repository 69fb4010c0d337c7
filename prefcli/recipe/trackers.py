"""What the trackers of `logging.report_to` need here, told without importing any of them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from prefcli.errors import Problem, RecipeError
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


def keep_trackers_here(options: Logging) -> list[str]:
    """With --offline: wandb writes files, and what can only send is refused. What to say of it.

    Raises RecipeError.
    """
    problems, said = [], []
    if "wandb" in options.report_to:
        mode = os.environ.setdefault("WANDB_MODE", "offline")
        if mode not in ("offline", "disabled"):
            problems.append(_sends("WANDB_MODE", "set it to offline, or unset it"))
        elif mode == "offline":
            said.append("wandb: kept in files (WANDB_MODE=offline); `wandb sync` sends them later")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "mlflow" in options.report_to and urlsplit(uri).scheme not in ("", "file", "sqlite"):
        problems.append(_sends("MLFLOW_TRACKING_URI", "point it to a folder or a sqlite: file"))
    if "trackio" in options.report_to:
        problems += [
            _sends(name, "unset it; `trackio sync` sends a run later")
            for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
            if os.environ.get(name)
        ]
    if problems:
        raise RecipeError(problems)
    return said


def _sends(variable: str, cure: str) -> Problem:
    return Problem(f"--offline, but {variable} sends what is tracked away", path=_PATH, hint=cure)
