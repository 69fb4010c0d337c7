"""A recipe's launch section as accelerate's configuration, and as command lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Launch

_TYPES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
_PRECISIONS = {"auto": "bf16", "bfloat16": "bf16", "float16": "fp16", "float32": "no"}

FSDP2 = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    # A model's own layers, by transformers' list of them (_no_split_modules).
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    # transformers' save_model writes weights under this type, and nothing under the other.
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    # Each process loads the policy whole: check-sft and the reference look at it before sharding.
    "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_offload_params": False,
    # The trainer does it, by training.gradient_checkpointing.
    "fsdp_activation_checkpointing": False,
}


def _zero(stage: int) -> dict[str, Any]:
    return {
        "zero_stage": stage,
        # As for FSDP: the policy is loaded before it is sharded.
        "zero3_init_flag": False,
        # Or model/ would hold no weights.
        "zero3_save_16bit_model": stage == 3,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        # A launcher on each machine, as with the other strategies; DeepSpeed's own needs pdsh.
        "deepspeed_multinode_launcher": "standard",
    }


def accelerate_config(recipe: Recipe, launch: Launch, processes: int) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads. processes: on each machine."""
    count = processes * launch.nodes
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO"
        if launch.strategy == "ddp" and count == 1
        else _TYPES[launch.strategy],
        "num_machines": launch.nodes,
        "num_processes": count,
        "machine_rank": 0,
        "mixed_precision": _PRECISIONS[recipe.model.dtype],
        "use_cpu": False,
        # A free port of the machine; several machines agree on one.
        **({"main_process_port": 0} if launch.nodes == 1 else {"same_network": True}),
    }
    if launch.strategy == "fsdp2":
        config["fsdp_config"] = dict(FSDP2)
    elif launch.strategy != "ddp":
        config["deepspeed_config"] = _zero(3 if launch.strategy == "zero3" else 2)
    return config


def command_lines(launch: Launch, processes: int, file: str, words: Sequence[str]) -> list[str]:
    """The commands that do the same; on several machines, each runs them with these variables set.

    words: after `prefcli`.
    """
    several = launch.nodes > 1
    run = f"-m prefcli {shlex.join(words)}"
    there = (
        ' --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR"'
        ' --main_process_port "$MASTER_PORT"'
    )
    lines = [f"accelerate launch --config_file {shlex.quote(file)}{there * several} {run}"]
    if launch.strategy == "ddp":
        there = (
            f'--nnodes {launch.nodes} --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" '
            '--master-port "$MASTER_PORT"'
        )
        where = there if several else "--standalone"
        lines.append(f"torchrun {where} --nproc-per-node {processes} {run}")
    return lines


def processes_in(launch: Launch) -> int:
    """As it is written. Raises RecipeError where it is left to the machine."""
    if launch.processes is None:
        raise RecipeError(
            Problem(
                "left out, it is the number of GPUs of the machine that trains, which need not be "
                "this one",
                path="launch.processes",
                hint="say it, as in launch.processes=8",
            )
        )
    return launch.processes
