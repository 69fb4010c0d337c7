"""Switches off the telemetry of the libraries, unless the user has turned it on."""

from __future__ import annotations

import os
from typing import NamedTuple


class Switch(NamedTuple):
    """An environment variable, and the value that stops a library from sending data."""

    name: str
    off: str
    what: str
    read_in: str


SWITCHES = (
    Switch(
        "HF_HUB_DISABLE_TELEMETRY",
        "1",
        "the model and trainer in use, and library versions in each request header",
        "huggingface_hub/constants.py; respected by send_telemetry, which trl's trainers call in "
        "their constructor (trl/trainer/base_trainer.py), by transformers and by datasets",
    ),
    Switch(
        "HF_UPDATE_DOWNLOAD_COUNTS",
        "0",
        "a request to the hub for each file that is read, local files included",
        "datasets/config.py; respected by increase_load_count in datasets/load.py",
    ),
    Switch(
        "DISABLE_SAFETENSORS_CONVERSION",
        "1",
        "the names of models without safetensors, to a service that converts them",
        "transformers/modeling_utils.py",
    ),
    Switch(
        "HF_HUB_DISABLE_UPDATE_CHECK",
        "1",
        "a check for newer versions",
        "huggingface_hub/constants.py",
    ),
    Switch(
        "WANDB_ERROR_REPORTING",
        "false",
        "crash reports of wandb itself, with its environment",
        "wandb/env.py; metrics are still sent to the trackers of logging.report_to",
    ),
    Switch(
        "MLFLOW_DISABLE_TELEMETRY",
        "true",
        "the mlflow functions that are called",
        "mlflow/telemetry/utils.py",
    ),
    Switch(
        "GRADIO_ANALYTICS_ENABLED",
        "False",
        "the use of gradio, which earlier versions of trackio use for their pages",
        "gradio/analytics.py",
    ),
)


def no_telemetry() -> None:
    """Set every switch that is not set yet. Child processes inherit them.

    Call it before any library is imported, as most read their variable once. DO_NOT_TRACK is not
    set: it would override a library's own variable that the user has turned on.
    """
    for switch in SWITCHES:
        os.environ.setdefault(switch.name, switch.off)
