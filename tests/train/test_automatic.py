"""launch.strategy: auto and per_device_train_batch_size: auto, on simulated devices."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml
from transformers import LlamaConfig

from prefcli.checkpoints.saved_choices import with_saved_choices
from prefcli.cli.launch import start_processes
from prefcli.errors import GateError, RecipeError
from prefcli.launcher import launch as launch_module
from prefcli.memory import gradient_checkpointing
from prefcli.memory.automatic import refuse_too_large, resolve_automatic
from prefcli.memory.fake_models import Architectures
from prefcli.memory.fake_step import StepPeaks
from prefcli.memory.hardware import Hardware
from prefcli.memory.profiler import Peak
from prefcli.memory.sharding import Sizes
from prefcli.memory.step_memory import Simulations, StepMemory
from prefcli.model import Device
from prefcli.training.run import train
from tests.support.tiny_runs import pairs, write_jsonl

pytestmark = pytest.mark.memory

GIB = 2**30
GPU = Device("cuda", "a GPU", bfloat16=True)
CPU = Device("cpu", "a CPU", bfloat16=False)
CONFIG = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
AUTO = ("training.global_batch_size=64", "training.per_device_train_batch_size=auto")


class Simulated:
    """A step that holds 16 GiB whole, 1 GiB with an adapter, and 1 GiB for each row."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, recipe, method, architectures, device, *, length) -> StepPeaks:
        self.calls += 1
        rows = Counter(activations=recipe.training.train_batch_size * GIB)
        weights = Counter(weights=(1 if recipe.lora else 16) * GIB)
        return StepPeaks(Peak((rows + weights).total(), rows + weights, rows), Peak(), True)


@pytest.fixture
def recipe_of(recipe_data, make_recipe):
    del recipe_data["kto"]  # which needs two rows per device

    def make(*overrides: str):
        return make_recipe(recipe_data, *AUTO, *overrides).recipe

    return make


def step_of(recipe, simulate) -> StepMemory:
    # Sharded: 4 bytes of weights and of gradients, 2 of the reference, over 8 devices.
    sizes = Sizes(policy=GIB, trainable=GIB, reference=GIB, layer=0, root=0)
    info = SimpleNamespace(architectures=Architectures(CONFIG), sizes=sizes)
    start = SimpleNamespace(adapter=None)
    return StepMemory(
        recipe, start, info, None, Simulations(simulate, simulate, None, lambda recipe: 0)
    )


def resolve(recipe, devices, gib, device=GPU, simulate=None, **target):
    memory = None if gib is None else gib * GIB
    strategy = "single" if devices == 1 else "ddp"
    hardware = Hardware(device, devices, strategy, memory, automatic=True)
    return resolve_automatic(recipe, recipe.dpo, hardware, step_of(recipe, simulate or Simulated()))


@pytest.mark.parametrize(
    ("devices", "gib", "strategy", "rows", "line"),
    [
        # (16 + 32) * 1.08 + 1, and the 64 rows of a step would not fit.
        (1, 80, "single", 32, "one process, 32 rows per device, 52.8 GiB of 80.0 GiB predicted"),
        (8, 80, "ddp", 8, "ddp on 8 devices, 8 rows per device, 26.9 GiB of 80.0 GiB predicted"),
        (8, 20, "ddp", 1, "ddp on 8 devices, 1 row per device, 19.4 GiB of 20.0 GiB predicted"),
        # (10 / 8 + 8) * 1.08 + 1
        (
            8,
            18,
            "fsdp2",
            8,
            "fsdp2 on 8 devices, 8 rows per device, 11.0 GiB of 18.0 GiB predicted; "
            "ddp needs 19.4 GiB",
        ),
        (8, None, "ddp", 8, "ddp on 8 devices, 8 rows per device, as the memory of a GPU is not"),
    ],
)
def test_resolve_automatic_by_the_memory_of_each_device(
    recipe_of, devices, gib, strategy, rows, line
):
    resolved = resolve(recipe_of(), devices, gib)
    assert resolved.target.strategy == resolved.recipe.launch.strategy == strategy
    assert resolved.recipe.training.train_batch_size == rows
    assert resolved.line.startswith(f"launch: {line}")
    assert resolved.too_large is None


def test_resolve_automatic_on_a_cpu_is_a_rule(recipe_of):
    """Check the largest divisor up to 8 of the rows of each process."""
    simulate = Simulated()
    for rows, processes, expected in ((64, 1, 8), (12, 1, 6), (12, 2, 6), (7, 1, 7), (11, 1, 1)):
        recipe = recipe_of(f"training.global_batch_size={rows}", "rloo=null")
        resolved = resolve(recipe, processes, None, CPU, simulate)
        assert resolved.recipe.training.train_batch_size == expected
        assert resolved.line.endswith(", as always on a CPU")
    assert simulate.calls == 0


def test_resolve_automatic_keeps_given_settings(recipe_of):
    recipe = recipe_of("training.per_device_train_batch_size=2")
    assert resolve(recipe, 8, 80).recipe.training.train_batch_size == 2
    simulate = Simulated()
    recipe = recipe_of("training.per_device_train_batch_size=2", "launch.strategy=ddp")
    given = Hardware(GPU, 8, "ddp", GIB)
    resolved = resolve_automatic(recipe, recipe.dpo, given, step_of(recipe, simulate))
    assert (resolved.recipe, resolved.line, simulate.calls) == (recipe, None, 0)


def test_resolve_automatic_prefers_rows_without_checkpointing(recipe_of, monkeypatch):
    """Check 16 rows: 17 GiB by the estimate with 1 GiB per row, and at most 0.85 * 24 GiB."""

    def estimate(recipe, *args, **kwargs):
        return (1 + recipe.training.train_batch_size) * GIB

    monkeypatch.setattr(gradient_checkpointing, "estimate_activation_memory", estimate)
    adapter = recipe_of("lora.rank=2", "training.gradient_checkpointing=auto")
    assert resolve(adapter, 1, 24).recipe.training.train_batch_size == 16
    always = recipe_of("lora.rank=2", "training.gradient_checkpointing=true")
    assert resolve(always, 1, 40).recipe.training.train_batch_size == 32


def test_resolve_automatic_without_a_simulation_is_a_rule(recipe_of):
    def fails(*args, **kwargs):
        raise NotImplementedError("no such operator\nand more")

    resolved = resolve(recipe_of(), 8, 80, simulate=fails)
    assert resolved.line == (
        "launch: ddp on 8 devices, 8 rows per device, as the step cannot be simulated (no such "
        "operator)"
    )


def test_resolve_automatic_of_quantized_weights_does_not_shard(recipe_of):
    recipe = recipe_of("lora.rank=2", "model.quantization=4bit")
    resolved = resolve(recipe, 8, 2)
    assert resolved.too_large is not None
    assert resolved.target.strategy == "ddp"


def test_resolve_automatic_of_rows_that_cannot_be_divided_is_an_error(recipe_of):
    with pytest.raises(RecipeError, match="64 rows cannot be divided over 7 devices"):
        resolve(recipe_of(), 7, 80)


def test_step_that_is_too_large_is_refused_with_an_adapter_as_the_cure(recipe_of):
    recipe = recipe_of("training.learning_rate=5e-7")
    resolved = resolve(recipe, 1, 12)
    assert resolved.too_large is not None
    with pytest.raises(GateError) as stop:
        refuse_too_large(*resolved.too_large, step_of(recipe, Simulated()))
    (problem,) = stop.value.problems
    assert problem.message == "a step needs 19.4 GiB on each GPU, which has 12.0 GiB"
    assert problem.hint == "this fits: lora.rank=16 training.learning_rate=5e-06"


def test_dry_run_chooses_the_strategy_for_its_devices(tiny_model, recipe_data, dry_run, tmp_path):
    """Check a model of 182 million parameters without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=1,
        num_attention_heads=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    recipe_data["model"] = {"name_or_path": str(folder), "init": "random"}
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "many.jsonl", pairs(64)))
    recipe_data["training"] |= {
        "global_batch_size": 16,
        "per_device_train_batch_size": "auto",
        "learning_rate": 5e-7,
    }
    devices = ("--devices", "8", "--gpu-memory")
    for size, strategy in (("8GiB", "ddp"), ("4GiB", "fsdp2")):
        code, document, printed = dry_run(recipe_data, "dpo", *devices, size)
        assert (code, document["problems"]) == (0, [])
        memory = document["memory"]
        assert (memory["strategy"], memory["rows"], memory["fits"]) == (strategy, 2, True)
        assert f"launch: {strategy} on 8 devices, 2 rows per device, " in printed
        assert "(2 per device x 8 devices x 1 accumulated)" in printed


def test_run_saves_what_was_automatic(recipe_of, capsys):
    recipe = recipe_of("training.max_steps=1", "training.global_batch_size=12")
    train(recipe, recipe.dpo)
    printed = capsys.readouterr().out
    assert "launch: one process, 6 rows per device, as always on a CPU" in printed
    run = Path(recipe.output_dir)
    saved = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    assert saved["launch"]["strategy"] == "single"
    assert saved["training"]["per_device_train_batch_size"] == 6
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["strategy"] == "single"
    assert record["effective"]["per_device_train_batch_size"] == 6


def test_with_saved_choices_of_a_run_with_a_checkpoint_keeps_them(recipe_of):
    recipe = recipe_of()
    run = Path(recipe.output_dir)
    run.mkdir()
    effective = {"per_device_train_batch_size": 2}
    (run / "run.json").write_text(json.dumps({"strategy": "fsdp2", "effective": effective}))
    assert with_saved_choices(recipe) == recipe
    (run / "checkpoint-5").mkdir()
    saved = with_saved_choices(recipe)
    assert saved.launch.strategy == "fsdp2"
    assert saved.training.train_batch_size == 2
    given = recipe_of("launch.strategy=ddp", "training.per_device_train_batch_size=4")
    assert with_saved_choices(given) == given


def test_start_processes_passes_the_choice_to_its_workers(recipe_data, make_recipe, monkeypatch):
    loaded = make_recipe(recipe_data, *AUTO, "launch.processes=2")
    started = []
    monkeypatch.setattr(sys, "argv", ["prefcli", "dpo", "r.yaml", *AUTO])
    monkeypatch.setattr(launch_module.torch.cuda, "device_count", lambda: 2)

    def choose(recipe, method, resume, processes, *, allow_unusual):
        training = recipe.training.model_copy(update={"per_device_train_batch_size": 4})
        launch = recipe.launch.model_copy(update={"strategy": "fsdp2"})
        return recipe.model_copy(update={"training": training, "launch": launch})

    def start(recipe, arguments, signals) -> int:
        started.append((recipe.launch.strategy, arguments))
        return 7

    monkeypatch.setattr("prefcli.training.run.choose_launch", choose)
    monkeypatch.setattr(launch_module, "launch_processes", start)
    with pytest.raises(typer.Exit) as stop:
        start_processes(loaded, loaded.recipe.dpo, "auto", allow_unusual=False)
    assert stop.value.exit_code == 7
    settings = ["launch.strategy=fsdp2", "training.per_device_train_batch_size=4"]
    assert started == [("fsdp2", ["dpo", "r.yaml", *AUTO, *settings])]


def test_start_processes_on_one_device_returns(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data, *AUTO)
    start_processes(loaded, loaded.recipe.dpo, "auto", allow_unusual=False)
