"""A model that is spread over devices: its shares by hand, and launchers that spread it."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from prefcli.memory.fake_models import Architectures
from prefcli.memory.fake_step import StepPeaks
from prefcli.memory.hardware import Hardware
from prefcli.memory.prediction import BeforeSharding, predict
from prefcli.memory.profiler import Peak
from prefcli.memory.sharding import Sizes, blocks, sharded
from prefcli.model import Device
from prefcli.model.loading import empty_model
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Model
from prefcli.text import format_bytes
from prefcli.training.simulation import simulate_run_step

GPU = Device("cuda", "a GPU", bfloat16=True)

FULL = Sizes(policy=1000, trainable=1000, reference=1000, layer=100, root=300)
LORA = Sizes(policy=1100, trainable=100, reference=0, layer=100, root=300)


def on(devices: int, strategy: str) -> Hardware:
    return Hardware(GPU, devices, strategy, None)


def step(states: int, activations: int = 900, logits: int = 50, update: int = 0) -> StepPeaks:
    """Return the peaks of a step that was simulated on one device."""
    passes = Peak(0, Counter(optimizer=states), Counter(activations=activations, logits=logits))
    return StepPeaks(passes, Peak(0, Counter(activations=update)), states_follow_weights=True)


# In training of all weights, the states are simulated in bfloat16 (2 * 2 bytes per weight), and
# held in float32. Both of ZeRO's buckets are larger than a model this small.
@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        (
            "zero3",
            {
                "weights": 2 * 1000 // 4 + 4 * 1000 // 4,
                "reference": 2 * 1000 // 4,
                "gradients": 2 * 1000 // 4,
                "optimizer": 8 * 1000 // 4,
                "gathered": 2 * 1000 + 2 * 1000,
            },
        ),
        (
            "zero2",
            {
                "weights": 2 * 1000 + 4 * 1000 // 4,
                "reference": 2 * 1000,
                "gradients": 2 * 1000 // 4,
                "optimizer": 8 * 1000 // 4,
                "gathered": 2 * 1000,
            },
        ),
        (
            "fsdp2",
            {
                "weights": 4 * 1000 // 4,
                "reference": 4 * 1000 // 4,
                "gradients": 4 * 1000 // 4,
                "optimizer": 8 * 1000 // 4,
                # Embeddings and two layers; gradients of those, and of one layer to be summed up.
                "gathered": 2 * (300 + 200) + 2 * (300 + 200) + 4 * 100,
            },
        ),
    ],
)
def test_sharded_weights_are_divided_by_the_devices(strategy, parts):
    shares, phase = sharded(FULL, step(4 * 1000), on(4, strategy), adapter=False)
    assert shares == parts | {"activations": 900, "logits": 50}
    assert phase == "the backward pass"


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        (
            "zero3",
            {
                "weights": 2 * 1100 // 4 + 4 * 100 // 4,
                "gradients": 2 * 100 // 4,
                "gathered": 2 * 1100 + 2 * 100,
            },
        ),
        (
            "zero2",
            {
                "weights": 2 * 1100 + 4 * 100 // 4,
                "gradients": 2 * 100 // 4,
                "gathered": 2 * 100,
            },
        ),
        (
            "fsdp2",
            {
                "weights": (4 * 100 + 2 * 1000) // 4,
                "gradients": 4 * 100 // 4,
                "gathered": 2 * (300 + 200),
            },
        ),
    ],
)
def test_sharded_adapter_is_divided_by_the_devices(strategy, parts):
    """Check an adapter, whose states are simulated in float32."""
    shares, _ = sharded(LORA, step(8 * 100), on(4, strategy), adapter=True)
    rest = {"reference": 0, "optimizer": 8 * 100 // 4, "activations": 900, "logits": 50}
    assert shares == parts | rest


@pytest.mark.parametrize(("strategy", "bytes_per_weight"), [("fsdp1", 4), ("fsdp2", 2)])
def test_sharded_fsdp2_reference_in_16_bits_is_half(strategy, bytes_per_weight):
    shares, _ = sharded(FULL, step(4000), on(4, strategy), adapter=False, half=True)
    assert shares["reference"] == bytes_per_weight * 1000 // 4


@pytest.mark.parametrize(("strategy", "gathered"), [("fsdp1", 2 * 5000), ("fsdp2", 2400)])
def test_sharded_fsdp1_reference_is_gathered_as_one(strategy, gathered):
    """trl wraps it as one: 2 bytes of each weight, where those are more than the policy's part."""
    large = Sizes(policy=1000, trainable=1000, reference=5000, layer=100, root=300)
    shares, _ = sharded(large, step(4000), on(4, strategy), adapter=False)
    assert shares["gathered"] == gathered


def test_sharded_peak_may_be_the_optimizer_step():
    """foreach copies a share of the weights: simulated in bfloat16, allocated in float32."""
    shares, phase = sharded(FULL, step(4000, 90, 10, update=8000), on(4, "fsdp2"), adapter=False)
    assert phase == "the optimizer's step"
    assert (shares["temporary"], shares["gathered"]) == (2 * 8000 // 4, 0)
    assert "activations" not in shares


def test_sharded_zero_buckets_have_a_limit():
    """Check the limits: 1e9 parameters are gathered, and 5e8 gradients reduced, at a time."""
    seven = Sizes(7 * 10**9, 7 * 10**9, 0, 2 * 10**8, 3 * 10**8)
    shares, _ = sharded(seven, step(28 * 10**9), on(8, "zero3"), adapter=False)
    assert shares["gathered"] == 2 * 10**9 + 2 * 5 * 10**8


# The whole way, of a small model: 45440 parameters a layer, 64 * 2000 + 64 outside.

CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LAYER, ROOT = 45_440, 128_064
WHOLE = 2 * LAYER + ROOT


def test_blocks_returns_layer_and_root_parameters():
    assert blocks(empty_model(CONFIG, Model(name_or_path="any"))) == (LAYER, ROOT)


@functools.cache
def _simulated(recipe: str, length: int) -> StepPeaks:
    parsed = Recipe.model_validate_json(recipe)
    return simulate_run_step(parsed, parsed.dpo, Architectures(CONFIG), GPU, length=length)


def simulate(recipe, method, architectures, device, *, length) -> StepPeaks:
    """Simulate a step once for all the devices whose step it is."""
    assert (method, architectures, device) == (recipe.dpo, Architectures(CONFIG), GPU)
    return _simulated(recipe.model_dump_json(), length)


def memory(devices: int, strategy: str, **changes):
    recipe = Recipe.model_validate(
        {
            "output_dir": "runs/x",
            "model": {"name_or_path": "m"},
            "dpo": {},
            "data": {"train": {"path": "a.jsonl"}},
            "training": {"global_batch_size": 4 * devices, "per_device_train_batch_size": 4},
            **changes,
        }
    )
    sizes = Sizes(policy=WHOLE, trainable=WHOLE, reference=WHOLE, layer=LAYER, root=ROOT)
    return predict(
        recipe,
        recipe.dpo,
        Architectures(CONFIG),
        sizes,
        on(devices, strategy),
        length=32,
        simulate=simulate,
    )


def predicted(devices: int, strategy: str, **changes):
    return memory(devices, strategy, **changes).parts


def halved(two, four) -> set[str]:
    return {name for name in two if two[name] and abs(two[name] - 2 * four[name]) <= 2}


@pytest.mark.parametrize(
    ("strategy", "shared"),
    [
        ("fsdp2", {"weights", "reference", "gradients", "optimizer"}),
        ("zero3", {"weights", "reference", "gradients", "optimizer"}),
        ("zero2", {"gradients", "optimizer"}),
    ],
)
def test_predict_on_twice_the_devices_halves_the_shards(strategy, shared):
    two, four = predicted(2, strategy), predicted(4, strategy)
    assert halved(two, four) == shared
    equal_parts = {"gathered", "activations", "logits"}
    assert {name: two[name] for name in equal_parts} == {name: four[name] for name in equal_parts}
    if strategy == "zero2":
        # bfloat16 stays unsharded; only the float32 copy is shared.
        assert two["weights"] == 2 * WHOLE + 4 * WHOLE // 2
        assert four["weights"] == 2 * WHOLE + 4 * WHOLE // 4


def test_predict_for_ddp_is_as_for_one_device():
    """Gradients are views of its buckets."""
    assert predicted(8, "ddp") == predicted(1, "single")


@pytest.mark.parametrize(
    ("strategy", "changes", "gpu"),
    [
        ("fsdp2", {}, 2 * WHOLE),  # for check-sft, in 16 bits
        ("fsdp2", {"check_sft": {"on_fail": "skip"}}, 4 * ROOT),
        ("zero3", {"check_sft": {"on_fail": "skip"}}, 4 * WHOLE),
        ("ddp", {}, None),
    ],
)
def test_memory_before_sharding_counts_whole_models(strategy, changes, gpu):
    """Check the unsharded models on each GPU, and policy and reference of each process in RAM."""
    shares = memory(8, strategy, **changes)
    if gpu is None:
        assert shares.before_sharding is None
        return
    for_check_sft = gpu == 2 * WHOLE
    assert shares.before_sharding == BeforeSharding(gpu, 8 * 2 * 4 * WHOLE, for_check_sft)
    (line,) = (line for line in shares.lines(on(8, strategy)) if "before" in line)
    assert line == (
        f"memory: before it is sharded: {format_bytes(gpu)} on each GPU"
        + (", for check-sft" if for_check_sft else "")
        + f", and {format_bytes(64 * WHOLE)} of the machine's memory"
    )


def test_memory_before_sharding_can_be_what_does_not_fit():
    shares = memory(8, "zero3")
    parts = replace(shares, parts={"weights": 1})
    needed = 4 * WHOLE + 2**30
    assert parts.needed == needed
    hardware = on(8, "zero3")
    assert [parts.fits(replace(hardware, gpu_memory=needed - less)) for less in (0, 1)] == [
        True,
        False,
    ]


# Launchers.


@pytest.mark.parametrize(
    ("environment", "strategy"),
    [
        ({}, "single"),
        ({"WORLD_SIZE": "1"}, "single"),
        ({"WORLD_SIZE": "8"}, "ddp"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}, "fsdp1"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp1"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "false"}, "ddp"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
        *(
            (
                {
                    "WORLD_SIZE": "8",
                    "ACCELERATE_USE_DEEPSPEED": "true",
                    "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage,
                },
                f"zero{stage}",
            )
            for stage in "23"
        ),
    ],
)
def test_strategy_here_reads_the_environment_of_launchers(environment, strategy):
    assert strategy_here(environment) == strategy


@pytest.mark.parametrize("stage", [2, 3])
def test_strategy_here_reads_the_stage_of_a_deepspeed_file(tmp_path, stage):
    """`accelerate launch` leaves the stage out where a file has it."""
    file = tmp_path / "deepspeed.json"
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    environment = {
        "WORLD_SIZE": "8",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }
    assert strategy_here(environment) == f"zero{stage}"
