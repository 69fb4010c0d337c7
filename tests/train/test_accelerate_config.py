"""The configuration of a launch section, read by accelerate and DeepSpeed themselves."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FullStateDictConfig, StateDictType

from prefcli.errors import RecipeError
from prefcli.launcher.accelerate_config import accelerate_config
from prefcli.launcher.launch import accelerate_environment
from prefcli.memory.hardware import target_of
from prefcli.model.device import refuse_many_gpus_without_launcher
from prefcli.model.distributed import check_launch_section, check_launch_strategy, strategy_of
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Launch

RECIPE = Recipe.model_validate(
    {
        "output_dir": "runs/x",
        "model": {"name_or_path": "m"},
        "dpo": {},
        "data": {"train": {"path": "a.jsonl"}},
    }
)


def config_of(**launch) -> dict:
    return accelerate_config(RECIPE, Launch.model_validate(launch), 2)


def environment_of(**launch) -> dict[str, str]:
    """Return the variables that accelerate sets for its processes."""
    return accelerate_environment(config_of(**launch))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("zero2", DistributedType.DEEPSPEED),
        ("zero3", DistributedType.DEEPSPEED),
    ],
)
@pytest.mark.parametrize("nodes", [1, 2])
def test_accelerate_config_file_is_accepted(tmp_path, strategy, kind, nodes):
    """accelerate refuses unknown keys."""
    file = tmp_path / "launch.yaml"
    file.write_text(yaml.safe_dump(config_of(strategy=strategy, nodes=nodes)))
    config = load_config_from_file(str(file))
    assert config.distributed_type == kind
    assert (config.num_processes, config.num_machines) == (2 * nodes, nodes)
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_strategy_here_finds_the_strategy_of_the_environment(strategy):
    assert strategy_here({"WORLD_SIZE": "2", **environment_of(strategy=strategy)}) == strategy


def test_accelerate_environment_fsdp2_becomes_a_plugin(monkeypatch):
    for name, value in environment_of(strategy="fsdp2").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert isinstance(plugin.state_dict_config, FullStateDictConfig)
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False
    assert plugin.cpu_offload is not True


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize(("strategy", "stage"), [("zero2", 2), ("zero3", 3)])
def test_accelerate_environment_zero_becomes_a_deepspeed_config(monkeypatch, strategy, stage):
    from deepspeed.runtime.config import DeepSpeedConfig

    for name, value in environment_of(strategy=strategy).items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    # The trainer sets these from its own options; these are for a single process.
    filled = plugin.deepspeed_config | {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
    }
    config = DeepSpeedConfig(filled)
    assert config.zero_optimization_stage == stage
    assert config.zero_config.offload_optimizer is None or (
        config.zero_config.offload_optimizer.device == "none"
    )
    assert config.zero_config.gather_16bit_weights_on_model_save == (stage == 3)
    assert config.bfloat16_config.enabled


def test_accelerate_environment_zero3_has_no_init_and_no_accumulation():
    variables = environment_of(strategy="zero3")
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert variables["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert variables["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert variables["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    # The trainer computes it from the global batch size.
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in variables


# In the processes: the launch section against the launcher.


def set_environment(monkeypatch, **variables: str) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def torchrun(nodes: int, per_node: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(nodes * per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_WORLD_SIZE": str(nodes),
    }


@pytest.mark.parametrize(
    ("launch", "variables"),
    [
        ({"processes": 8}, torchrun(1, 8)),
        ({}, torchrun(1, 4)),
        ({"processes": 8, "nodes": 2}, torchrun(2, 8)),
        ({"processes": 1}, {}),
        ({"strategy": "ddp", "processes": 1}, {}),
        ({"strategy": "single"}, torchrun(1, 1)),
        (
            {"strategy": "fsdp2", "processes": 2},
            {**torchrun(1, 2), "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        ),
    ],
)
def test_check_launch_section_of_a_matching_launcher_passes(monkeypatch, launch, variables):
    set_environment(monkeypatch, **variables)
    check_launch_section(Launch.model_validate(launch))


def test_check_launch_section_of_another_launcher_is_refused(monkeypatch):
    set_environment(monkeypatch, **torchrun(2, 4))
    launch = Launch(strategy="fsdp2", processes=8)
    with pytest.raises(RecipeError) as stop:
        check_launch_section(launch)
    paths = [problem.path for problem in stop.value.problems]
    assert paths == ["launch.strategy", "launch.processes", "launch.nodes"]
    assert "fsdp2" in stop.value.problems[0].message


def test_check_launch_section_without_deepspeed_is_refused(monkeypatch):
    set_environment(monkeypatch, **torchrun(1, 2), ACCELERATE_USE_DEEPSPEED="true")
    monkeypatch.setattr("prefcli.recipe.sections.training.find_spec", lambda name: None)
    with pytest.raises(RecipeError) as stop:
        check_launch_section(Launch())
    assert stop.value.problems[0].code == "RCP029"


def accelerator(kind: str, **attributes) -> SimpleNamespace:
    return SimpleNamespace(
        distributed_type=DistributedType(kind),
        device=torch.device("cpu"),
        is_fsdp2=True,
        **attributes,
    )


def test_check_launch_strategy_that_accelerate_ignored_is_refused(monkeypatch):
    """accelerate ignores FSDP on CPUs."""
    set_environment(monkeypatch, **torchrun(1, 2), ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    check_launch_strategy(accelerator("FSDP"))
    with pytest.raises(RecipeError, match=r"requested fsdp2, but accelerate uses ddp"):
        check_launch_strategy(accelerator("MULTI_CPU"))
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2))
    assert strategy_of(accelerator("DEEPSPEED", state=plugin)) == "zero2"


def test_refuse_many_gpus_without_launcher_names_the_command(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RecipeError, match=r"-> run the command prefcli"):
        refuse_many_gpus_without_launcher()
    monkeypatch.setenv("LOCAL_RANK", "0")
    refuse_many_gpus_without_launcher()


# A dry-run is for the devices of the run.


def test_target_of_a_launch_section_has_its_devices(monkeypatch):
    set_environment(monkeypatch)
    launch = Launch(strategy="zero3", processes=8, nodes=2)
    assert (target := target_of(launch=launch)).devices == 16
    assert target.strategy == "zero3"
    target = target_of(4, "fsdp2", launch=launch)
    assert (target.devices, target.strategy) == (4, "fsdp2")
    assert target_of(launch=Launch(processes=1)).strategy == "single"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RecipeError, match=r"number of GPUs, .* --devices 8"):
        target_of(launch=Launch(strategy="fsdp2"))


def test_accelerate_environment_does_not_change_the_environment():
    before = dict(os.environ)
    environment_of(strategy="fsdp2")
    assert dict(os.environ) == before
