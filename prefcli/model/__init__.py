"""Tokenizer, weights and adapters, from a hub id or a folder."""
# ruff: noqa: E402

import logging
import os

from prefcli.cuda_allocator import use_expandable_segments

# At its import, which peft does unasked, it tells what a detect_device without a GPU lacks.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# That ORPO and SimPO may move is our matter: see the pin of trl.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# For who calls prefcli as a library: the command line has done so earlier.
use_expandable_segments()

from prefcli.model.base_model import (
    check_model,
    load_base_config,
    load_policy,
    reference_model,
    resolve_model,
)
from prefcli.model.device import Device, detect_device, to_device
from prefcli.model.loading import count_parameters, load_model
from prefcli.model.lora import check_targets, lora_config, with_adapter
from prefcli.model.tokenizer import load_tokenizer

__all__ = [
    "Device",
    "check_model",
    "check_targets",
    "count_parameters",
    "detect_device",
    "load_base_config",
    "load_model",
    "load_policy",
    "load_tokenizer",
    "lora_config",
    "reference_model",
    "resolve_model",
    "to_device",
    "with_adapter",
]
