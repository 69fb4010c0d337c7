"""A dry-run: every check of a run, and the memory of a simulated step, without loading weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli import first_failure
from prefcli.console import say
from prefcli.data import Split
from prefcli.data.run_datasets import first_row_view, shape_checks
from prefcli.errors import Problem
from prefcli.memory.activations import Policy
from prefcli.memory.advice import Candidate, Remedy, fewest, refuse, remedies
from prefcli.memory.fake_step import StepPeaks, extrapolate_step, simulate_step
from prefcli.memory.gradient_checkpointing import choose
from prefcli.memory.hardware import Hardware, target_of
from prefcli.memory.model_info import describe_model
from prefcli.memory.prediction import Memory, predict
from prefcli.methods import Method
from prefcli.model import detect_device
from prefcli.packed_forward.supported_models import reason_against_config
from prefcli.preflight.checks import CHECKS
from prefcli.preflight.context import PreflightContext
from prefcli.preflight.result import DryRunResult
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.training.callbacks.sampling_callback import questions
from prefcli.training.mixins.context import TrainerContext
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixture
from prefcli.training.trainer import trainer_class_of
