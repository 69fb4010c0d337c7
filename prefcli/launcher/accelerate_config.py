"""A recipe's launch section as a configuration of accelerate, and as command lines."""

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
    # The model's decoder layers, by transformers' _no_split_modules.
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    # With the other type, transformers' save_model writes no weights.
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    # Each process loads all weights: check-sft and the reference use them before sharding.
    "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_offload_params": False,
    # training.gradient_checkpointing does this in the trainer.
    "fsdp_activation_checkpointing": False,
}


def _zero(stage: int) -> dict[str, Any]:
    return {
        "zero_stage": stage,
        # Each process loads all weights, as with FSDP.
        "zero3_init_flag": False,
        # Without it, model/ would have no weights.
        "zero3_save_16bit_model": stage == 3,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        # One launcher per node, as with the other strategies; DeepSpeed's default needs pdsh.
        "deepspeed_multinode_launcher": "standard",
    }


def accelerate_config(recipe: Recipe, launch: Launch, processes: int) -> dict[str, Any]:
    """Return the content of a file for `accelerate launch --config_file`.

    processes: per node.
    """
    count = processes * launch.nodes
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO"
        if launch.strategy in ("single", "ddp") and count == 1
        else _TYPES[launch.strategy],
        "num_machines": launch.nodes,
        "num_processes": count,
        "machine_rank": 0,
        "mixed_precision": _PRECISIONS[recipe.model.dtype],
        "use_cpu": False,
        # 0 is a free port; several nodes must use the same port.
        **({"main_process_port": 0} if launch.nodes == 1 else {"same_network": True}),
    }
    if launch.strategy == "fsdp2":
        config["fsdp_config"] = dict(FSDP2)
    elif launch.strategy not in ("single", "ddp"):
        config["deepspeed_config"] = _zero(3 if launch.strategy == "zero3" else 2)
    return config


def command_lines(launch: Launch, processes: int, file: str, words: Sequence[str]) -> list[str]:
    """Return the equivalent commands; each node runs them with NODE_RANK and MASTER_* set.

    words: the words after `prefcli`.
    """
    several = launch.nodes > 1
    run = f"-m prefcli {shlex.join(words)}"
    node_options = (
        ' --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR"'
        ' --main_process_port "$MASTER_PORT"'
    )
    lines = [f"accelerate launch --config_file {shlex.quote(file)}{node_options * several} {run}"]
    if launch.strategy in ("single", "ddp"):
        node_options = (
            f'--nnodes {launch.nodes} --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" '
            '--master-port "$MASTER_PORT"'
        )
        options = node_options if several else "--standalone"
        lines.append(f"torchrun {options} --nproc-per-node {processes} {run}")
    return lines


def processes_in(launch: Launch) -> int:
    """Return launch.processes. Raises RecipeError if it, or the strategy, depends on the machine
    that trains."""
    if launch.strategy == "auto":
        raise RecipeError(
            Problem(
                "is auto, which is chosen when a run starts, by the memory of its GPUs",
                path="launch.strategy",
                code="RCP030",
                hint="name it, e.g. launch.strategy=fsdp2; --dry-run shows which one fits",
            )
        )
    if launch.strategy == "single":
        return 1
    if launch.processes is None:
        raise RecipeError(
            Problem(
                "is not set, and its default is the number of GPUs of the machine that trains",
                path="launch.processes",
                code="ENV021",
                hint="set it, e.g. launch.processes=8",
            )
        )
    return launch.processes
