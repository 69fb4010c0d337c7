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
    check_start,
    load_policy,
    named_reference,
    start_config,
    start_of,
)
from prefcli.model.device import Device, detect_device, on_device
from prefcli.model.loading import load_model, parameters_of
from prefcli.model.lora import adapted, check_targets, lora_config
from prefcli.model.tokenizer import load_tokenizer

__all__ = [
    "Device",
    "adapted",
    "check_start",
    "check_targets",
    "detect_device",
    "load_model",
    "load_policy",
    "load_tokenizer",
    "lora_config",
    "named_reference",
    "on_device",
    "parameters_of",
    "start_config",
    "start_of",
]
