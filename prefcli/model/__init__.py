"""Tokenizer, weights and adapters, from a hub id or a folder."""

from prefcli.model.adapters import check_targets, lora_config
from prefcli.model.machine import Machine, machine
from prefcli.model.tokenizer import load_tokenizer
from prefcli.model.weights import load_config, load_model, parameters_of

__all__ = [
    "Machine",
    "check_targets",
    "load_config",
    "load_model",
    "load_tokenizer",
    "lora_config",
    "machine",
    "parameters_of",
]
