"""Facts about the machine that a bug report needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from prefcli import __version__
from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document
from prefcli.text import aligned, format_bytes

app = command_app()

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "liger-kernel",
    "typer",
    "pydantic",
)
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "WORLD_SIZE",
    "SLURM_JOB_ID",
)


@app.command()
def env(
    as_json: Json = False,
    device: Annotated[
        bool, typer.Option("--device/--no-device", help="Import torch to name the GPUs.")
    ] = True,
) -> None:
    """Print versions and devices, for a bug report."""
    facts = {
        "prefcli": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        **{name: number for name in _PACKAGES if (number := _version(name)) is not None},
        **(_device() if device else {}),
        "CPUs": str(os.cpu_count()),
        "disk here": f"{format_bytes(shutil.disk_usage('.').free)} free",
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if as_json:
        print_json(facts)
        return
    document("\n".join(aligned(list(facts.items()))))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, str]:
    # The border of the heavy half.
    try:
        import torch
    except ImportError as error:
        return {"device": f"torch can't be imported: {error}"}
    if not torch.cuda.is_available():
        return {"device": "CPU (no CUDA device is visible)"}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "device": ", ".join(f"{gpu.name} with {format_bytes(gpu.total_memory)}" for gpu in gpus),
        "CUDA": str(torch.version.cuda),
    }
