"""Tokenizer, weights and adapters, from a hub id or a folder."""

from prefcli.model.adapters import check_targets, lora_config
from prefcli.model.machine import Machine, machine, on_device
from prefcli.model.start import load_policy, load_reference, start_of
from prefcli.model.tokenizer import load_tokenizer
from prefcli.model.weights import load_config, load_model, parameters_of

__all__ = [
    "Machine",
    "check_targets",
    "load_config",
    "load_model",
    "load_policy",
    "load_reference",
    "load_tokenizer",
    "lora_config",
    "machine",
    "on_device",
    "parameters_of",
    "start_of",
]
