"""Tokenizer, weights and adapters, from a hub id or a folder."""
# ruff: noqa: E402

import logging
import os

from prefcli.cuda_allocator import use_expandable_segments

# peft imports it, and its import warns on machines without a GPU.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# trl warns that ORPO and CPO are experimental; trl is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# For callers of prefcli as a library; the command line has called it before.
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
