"""What the libraries underneath would send home, off unless the person turns it on."""

from __future__ import annotations

import os
from typing import NamedTuple


class Switch(NamedTuple):
    """An environment variable, and the value that keeps the library silent."""

    name: str
    off: str
    what: str
    read_in: str


SWITCHES = (
    Switch(
        "HF_HUB_DISABLE_TELEMETRY",
        "1",
        "what is trained with which trainer, and the software around it in each request's header",
        "huggingface_hub/constants.py; obeyed by send_telemetry, which trl's trainers call when "
        "they are made (trl/trainer/base_trainer.py), by transformers and by datasets",
    ),
    Switch(
        "HF_UPDATE_DOWNLOAD_COUNTS",
        "0",
        "a request to the hub for each file that is read, also for local ones",
        "datasets/config.py; obeyed by increase_load_count in datasets/load.py",
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
        "a look for newer versions",
        "huggingface_hub/constants.py",
    ),
    Switch(
        "WANDB_ERROR_REPORTING",
        "false",
        "wandb's own crashes, with the environment they happened in",
        "wandb/env.py; a run's figures go where logging.report_to sends them, as ever",
    ),
    Switch(
        "MLFLOW_DISABLE_TELEMETRY",
        "true",
        "which of mlflow's functions are called",
        "mlflow/telemetry/utils.py",
    ),
    Switch(
        "GRADIO_ANALYTICS_ENABLED",
        "False",
        "use of gradio, on which earlier versions of trackio show their pages",
        "gradio/analytics.py",
    ),
)


def no_telemetry() -> None:
    """To be called before any library is imported: most look once. Child processes inherit it.

    Only switches of single libraries are set: one for all, as DO_NOT_TRACK, would outweigh a
    library's own that the person has turned on.
    """
    for switch in SWITCHES:
        os.environ.setdefault(switch.name, switch.off)
