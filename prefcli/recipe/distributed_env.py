"""The processes of this run, by the environment variables that a launcher sets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefcli.recipe.compatibility import Strategy

_YES = ("y", "yes", "t", "true", "on", "1")
"""accelerate's words for true."""


def world_size() -> int:
    """Number of processes of this run, as set by torchrun and accelerate."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def strategy_here(environment: Mapping[str, str] | None = None) -> Strategy:
    """The strategy that accelerate's launcher has set up; torchrun alone means ddp."""
    environment = os.environ if environment is None else environment

    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _YES:
        return "zero3" if _zero_stage(environment) == 3 else "zero2"
    if environment.get("ACCELERATE_USE_FSDP", "").lower() in _YES:
        return "fsdp2" if environment.get("FSDP_VERSION") == "2" else "fsdp1"
    return "ddp" if int(environment.get("WORLD_SIZE", "1")) > 1 else "single"


def _zero_stage(environment: Mapping[str, str]) -> int | None:
    """DeepSpeed's stage as accelerate reads it: from its own file, else the launcher's option."""
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage: Any = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    # accelerate reports a broken file when it uses it.
    with suppress(OSError, ValueError, TypeError, KeyError):
        if file != "none":
            stage = json.loads(Path(file).read_text("utf-8"))["zero_optimization"]["stage"]
    return int(stage) if str(stage).isdigit() else None
