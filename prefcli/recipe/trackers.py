"""Checks of the trackers in `logging.report_to`, without importing any of them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.sections import Logging

_PATH = "logging.report_to"
_MLFLOW_SWITCH = "DISABLE_MLFLOW_INTEGRATION"
"""transformers' variable for machines that always have mlflow."""


def tracker_problems(options: Logging) -> list[Problem]:
    """One problem for each tracker that could not report from here."""
    problems = [
        Problem(
            f"{name} needs the package {name}",
            path=_PATH,
            hint=f"pip install {name}, or all trackers: pip install 'prefcli[trackers]'",
            code="RCP023",
        )
        for name in options.report_to
        if not is_installed(name)
    ]
    if "mlflow" in options.report_to and os.environ.get(_MLFLOW_SWITCH, "").upper() == "TRUE":
        problems.append(
            Problem(
                f"the environment has {_MLFLOW_SWITCH}={os.environ[_MLFLOW_SWITCH]}, which "
                "disables mlflow",
                path=_PATH,
                hint="unset the variable, or remove mlflow from the list",
                code="RCP024",
            )
        )
    return problems


def is_installed(package: str) -> bool:
    """False for a plain folder of that name, such as the wandb/ folder that wandb writes."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def keep_trackers_here(options: Logging) -> list[str]:
    """Make trackers write local files for --offline; returns lines that say so.

    Raises RecipeError for trackers that can only send.
    """
    problems, lines = [], []
    if "wandb" in options.report_to:
        mode = os.environ.setdefault("WANDB_MODE", "offline")
        if mode not in ("offline", "disabled"):
            problems.append(_sends("WANDB_MODE", "set it to offline, or unset it"))
        elif mode == "offline":
            lines.append("wandb: writes local files (WANDB_MODE=offline), for `wandb sync`")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "mlflow" in options.report_to and urlsplit(uri).scheme not in ("", "file", "sqlite"):
        problems.append(_sends("MLFLOW_TRACKING_URI", "set it to a folder or a sqlite: file"))
    if "trackio" in options.report_to:
        problems += [
            _sends(name, "unset it; `trackio sync` uploads a run later")
            for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
            if os.environ.get(name)
        ]
    if problems:
        raise RecipeError(problems)
    return lines


def _sends(variable: str, cure: str) -> Problem:
    return Problem(
        f"--offline, but {variable} makes the tracker open connections",
        path=_PATH,
        hint=cure,
        code="RCP024",
    )
