"""accelerate and DeepSpeed themselves read the configuration of a launch section."""

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
from prefcli.launcher import launch as starting
from prefcli.launcher.accelerate_config import accelerate_config
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
    """What accelerate's launcher gives its processes."""
    return starting.accelerate_environment(config_of(**launch))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("zero2", DistributedType.DEEPSPEED),
        ("zero3", DistributedType.DEEPSPEED),
    ],
)
@pytest.mark.parametrize("machines", [1, 2])
def test_accelerate_takes_the_file(tmp_path, strategy, kind, machines):
    """It refuses keys it does not know."""
    file = tmp_path / "launch.yaml"
    file.write_text(yaml.safe_dump(config_of(strategy=strategy, nodes=machines)))
    config = load_config_from_file(str(file))
    assert config.distributed_type == kind
    assert (config.num_processes, config.num_machines) == (2 * machines, machines)
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_what_was_asked_for_is_what_the_processes_find(strategy):
    assert strategy_here({"WORLD_SIZE": "2", **environment_of(strategy=strategy)}) == strategy


def test_fsdp2_as_accelerate_understands_it(monkeypatch):
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
def test_zero_as_deepspeed_understands_it(monkeypatch, strategy, stage):
    from deepspeed.runtime.config import DeepSpeedConfig

    for name, value in environment_of(strategy=strategy).items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    # The trainer fills these in from its own options; here for a world of this one process.
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


def test_zero_before_deepspeed_sees_it():
    found = environment_of(strategy="zero3")
    assert found["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert found["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert found["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert found["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    # The trainer's own, which is derived from the global batch.
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in found


# In the processes: what was asked for against what there is.


def under(monkeypatch, **variables: str) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def torchrun(nodes: int, each: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(nodes * each),
        "LOCAL_WORLD_SIZE": str(each),
        "GROUP_WORLD_SIZE": str(nodes),
    }


@pytest.mark.parametrize(
    ("launch", "variables"),
    [
        ({"processes": 8}, torchrun(1, 8)),
        ({}, torchrun(1, 4)),
        ({"processes": 8, "nodes": 2}, torchrun(2, 8)),
        ({"processes": 1}, {}),
        (
            {"strategy": "fsdp2", "processes": 2},
            {**torchrun(1, 2), "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        ),
    ],
)
def test_a_launcher_that_does_as_the_recipe_says(monkeypatch, launch, variables):
    under(monkeypatch, **variables)
    check_launch_section(Launch.model_validate(launch))


def test_a_launcher_that_does_otherwise_is_told_apart(monkeypatch):
    under(monkeypatch, **torchrun(2, 4))
    launch = Launch(strategy="fsdp2", processes=8)
    with pytest.raises(RecipeError) as stop:
        check_launch_section(launch)
    assert [(p.path, p.message) for p in stop.value.problems] == [
        ("launch.strategy", "the recipe says fsdp2, and the launcher has started ddp"),
        ("launch.processes", "the recipe says 8, and the launcher has started 4"),
        ("launch.nodes", "the recipe says 1, and the launcher has started 2"),
    ]


def test_deepspeed_that_is_not_there(monkeypatch):
    under(monkeypatch, **torchrun(1, 2), ACCELERATE_USE_DEEPSPEED="true")
    monkeypatch.setattr("prefcli.recipe.sections.training.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'prefcli\[deepspeed\]'"):
        check_launch_section(None)


def accelerator(kind: str, **more) -> SimpleNamespace:
    return SimpleNamespace(
        distributed_type=DistributedType(kind), device=torch.device("cpu"), is_fsdp2=True, **more
    )


def test_sharding_that_accelerate_left_out(monkeypatch):
    """As it does on CPUs."""
    under(monkeypatch, **torchrun(1, 2), ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    check_launch_strategy(None, accelerator("FSDP"))
    with pytest.raises(RecipeError, match=r"fsdp2 was asked for, and accelerate made it ddp"):
        check_launch_strategy(None, accelerator("MULTI_CPU"))
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2))
    assert strategy_of(accelerator("DEEPSPEED", state=plugin)) == "zero2"


def test_several_gpus_and_one_process(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RecipeError, match=r"-> write `launch: \{strategy: ddp\}` in the recipe"):
        refuse_many_gpus_without_launcher()
    monkeypatch.setenv("LOCAL_RANK", "0")
    refuse_many_gpus_without_launcher()


# A dry-run is for the machines of the run.


def test_a_dry_run_is_for_what_would_be_launched(monkeypatch):
    under(monkeypatch)
    launch = Launch(strategy="zero3", processes=8, nodes=2)
    assert (target := target_of(launch=launch)).devices == 16
    assert target.strategy == "zero3"
    target = target_of(4, "fsdp2", launch=launch)
    assert (target.devices, target.strategy) == (4, "fsdp2")
    assert target_of(launch=Launch(processes=1)).strategy == "single"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RecipeError, match="as in --devices 8"):
        target_of(launch=Launch(strategy="fsdp2"))


def test_the_environment_is_left_as_it_was():
    before = dict(os.environ)
    environment_of(strategy="fsdp2")
    assert dict(os.environ) == before
