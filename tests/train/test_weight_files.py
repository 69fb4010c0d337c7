"""Weights that are damaged, incomplete or of another shape stop a run before it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from prefcli.errors import RecipeError
from prefcli.model import load_policy
from prefcli.model.base_model import check_start_weights
from prefcli.recipe.sections import Model
from prefcli.training.run import train
from tests.support.problems import stops_with

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewrite(folder: Path, change, file: str = "model.safetensors") -> Path:
    path = folder / file
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def configure(folder: Path, file: str = "config.json", **values) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def shard(folder: Path, *, listed: int = 2, second: str = "b.safetensors") -> Path:
    """Split the weights into two files whose index lists one or both."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[:10], second: names[10:]}
    for file, part in halves.items():
        save_file({k: tensors[k] for k in part}, folder / file, metadata={"format": "pt"})
    index = {k: file for file, part in list(halves.items())[:listed] for k in part}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def cut(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return folder


def point(folder: Path) -> Path:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text)
    return folder


def spoil(tensors):
    tensors["model.embed_tokens.weight"][299, 3] = torch.nan  # a row that no text uses
    return tensors


FAULTS = {
    "missing": (
        "MDL026",
        UP,
        lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if k != UP}),
    ),
    "renamed": (
        "MDL026",
        "it has x.lm_head.weight",
        lambda f: rewrite(f, lambda t: {f"x.{k}": v for k, v in t.items()}),
    ),
    "more_layers": (
        "MDL026",
        "lacks 9 tensors",
        lambda f: configure(f, num_hidden_layers=3, layer_types=None),
    ),
    "half_index": ("MDL026", "lacks 11 tensors", lambda f: shard(f, listed=1)),
    "no_head": (
        "MDL026",
        "lm_head.weight",
        lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
    ),
    "shape": (
        "MDL027",
        "is 32x64 in model.safetensors and 32x48 by config.json (and 5 more)",
        lambda f: configure(f, intermediate_size=48),
    ),
    "type": (
        "MDL027",
        f"{UP} is int8",
        lambda f: rewrite(f, lambda t: t | {UP: t[UP].to(torch.int8)}),
    ),
    "cut": ("MDL025", "model.safetensors is not a complete safetensors file", cut),
    "pointer": ("MDL025", "is a git-lfs pointer", point),
    "missing_shard": (
        "MDL025",
        "b.safetensors",
        lambda f: (shard(f) / "b.safetensors").unlink() or f,
    ),
    "outside": ("MDL025", "outside its folder", lambda f: shard(f, second="../b.safetensors")),
    "nan": ("MDL028", "model.embed_tokens.weight", lambda f: rewrite(f, spoil)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_start_weights_fault_names_file_or_tensor(model, fault):
    code, named, plant = FAULTS[fault]
    options = Model(name_or_path=str(plant(model)))

    with stops_with(code, RecipeError) as error:
        check_start_weights(options)
    assert named in str(error.value)
    with stops_with(code, RecipeError):
        load_policy(options, torch.float32, 0)


def test_check_start_weights_sound_models_pass_and_unused_tensors_warn(model):
    assert check_start_weights(Model(name_or_path=str(model))) == []
    assert check_start_weights(Model(name_or_path=str(shard(model)))) == []
    configure(model, num_hidden_layers=1, layer_types=None)
    (warning,) = check_start_weights(Model(name_or_path=str(model)))
    assert "9 tensors that LlamaForCausalLM does not use: model.layers.1." in warning


def test_check_start_weights_tied_head_is_not_missing(model):
    configure(model, tie_word_embeddings=True)
    rewrite(model, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"})
    assert check_start_weights(Model(name_or_path=str(model))) == []


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        ("mixtral", SMALL | {"num_local_experts": 4}),
        ("qwen3_moe", SMALL | {"num_experts": 4, "moe_intermediate_size": 32}),
        ("gemma3_text", SMALL),
    ],
)
def test_check_start_weights_families_with_names_of_their_own_pass(tmp_path, family, config):
    """transformers converts, ties and merges what their files hold."""
    described = AutoConfig.for_model(family, vocab_size=64, **config)
    AutoModelForCausalLM.from_config(described).save_pretrained(tmp_path)
    assert check_start_weights(Model(name_or_path=str(tmp_path))) == []


def make_adapter(base: Path, folder: Path, *, rows: int | None = None, **config) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **config})
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


ADAPTER = "adapter_model.safetensors"
ADAPTER_FAULTS = {
    "missing": (
        "MDL026",
        "lacks 3 tensors",
        lambda f: rewrite(f, lambda t: dict(sorted(t.items())[:1]), ADAPTER),
    ),
    "unused": (
        "MDL026",
        "also has base_model.model.model.layers.0.self_attn.q_proj",
        lambda f: configure(f, "adapter_config.json", layers_to_transform=[1]),
    ),
    "type": (
        "MDL027",
        "uint8",
        lambda f: rewrite(f, lambda t: {k: v.to(torch.uint8) for k, v in t.items()}, ADAPTER),
    ),
    "rank": (
        "MDL027",
        "is 4x32 in adapter_model.safetensors and 3x32",
        lambda f: configure(f, "adapter_config.json", r=3),
    ),
    "invalid_rank": ("MDL002", "adapter", lambda f: configure(f, "adapter_config.json", r="x")),
    "flag_as_alpha": (
        "MDL002",
        "lora_alpha is True",
        lambda f: configure(f, "adapter_config.json", lora_alpha=True),
    ),
    "own_base": (
        "MDL009",
        "names itself",
        lambda f: configure(f, "adapter_config.json", base_model_name_or_path=str(f)),
    ),
    "nan": (
        "MDL028",
        ADAPTER,
        lambda f: rewrite(f, lambda t: {k: v * torch.nan for k, v in t.items()}, ADAPTER),
    ),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_check_start_weights_adapter_fault_names_file_or_tensor(tiny_model, tmp_path, fault):
    code, named, plant = ADAPTER_FAULTS[fault]
    folder = plant(make_adapter(tiny_model, tmp_path / "adapter"))
    options = Model(name_or_path=str(folder), adapter="merge")

    with stops_with(code, RecipeError) as error:
        check_start_weights(options)
    assert named in str(error.value)
    with stops_with(code, RecipeError):
        load_policy(options, torch.float32, 0)


def test_dry_run_of_an_adapter_that_peft_cannot_build_reports_it(
    tiny_model, tmp_path, recipe_data, dry_run
):
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    configure(folder, "adapter_config.json", alpha_pattern=[3])
    recipe_data["model"] = {"name_or_path": str(folder), "adapter": "continue"}
    code, document, _ = dry_run(recipe_data)
    assert (code, document["problems"][0]["code"]) == (2, "MDL002")


def test_check_start_weights_sound_adapters_pass(tiny_model, tmp_path):
    for name, config in {
        "dora": {"use_dora": True},
        "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
        "bias": {"bias": "all"},
    }.items():
        folder = make_adapter(tiny_model, tmp_path / name, **config)
        assert check_start_weights(Model(name_or_path=str(folder), adapter="merge")) == []


def test_check_start_weights_adapter_with_more_rows_names_both_counts(tiny_model, tmp_path):
    folder = make_adapter(
        tiny_model, tmp_path / "adapter", rows=302, modules_to_save=["embed_tokens", "lm_head"]
    )
    with stops_with("MDL029", RecipeError) as error:
        check_start_weights(Model(name_or_path=str(folder), adapter="merge"))
    assert "302 rows" in str(error.value)
    assert "its base has 300" in str(error.value)


def test_run_incomplete_weights_stop_before_training(model, recipe_data, make_recipe):
    FAULTS["missing"][2](model)
    recipe_data["model"] = {"name_or_path": str(model)}
    recipe = make_recipe(recipe_data).recipe

    with stops_with("MDL026", RecipeError):
        train(recipe, recipe.sft)
    assert not (Path(recipe.output_dir) / "run.json").exists()
