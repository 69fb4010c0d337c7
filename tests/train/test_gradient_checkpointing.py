"""gradient_checkpointing: auto: on where memory asks for it, off elsewhere, and said either way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from prefcli.memory import gradient_checkpointing
from prefcli.memory.activations import Policy, estimate_activation_memory
from prefcli.memory.fake_models import Architectures
from prefcli.memory.gradient_checkpointing import choose
from prefcli.model import Device, count_parameters
from prefcli.training.dry_run import simulate_run_step
