"""The parts of a model: what is trained, frozen and never reached, in full and under LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_record import RunRecord
from prefcli.errors import RecipeError
from prefcli.model.lora import check_parameters, check_targets, lora_config, with_adapter
from prefcli.model.parts import freeze_towers, part_sizes, table_of, tower_of
from prefcli.recipe.sections import Lora
from prefcli.training.run import train
from tests.support.tiny_families import empty, family, save_family
from tests.support.tiny_runs import metric_rows

LORA = Lora(rank=2, dropout=0.0)
EXPERTS = Lora(rank=2, dropout=0.0, target_parameters="experts")
ATTENTION = 16 * (16 + 8 + 8 + 16)
ADAPTED = 2 * (2 * (16 + 16) + 2 * (16 + 8))  # rank 2 on q, k, v and o


def trained(name: str, options: Lora) -> dict[str, int]:
    """Count the trained parameters of each part that has some, under an adapter."""
    model = empty(name)
    sizes = part_sizes(with_adapter(model, lora_config(options, model)))
    return {part: size.trained for part, size in sizes.items() if size.trained}


def test_part_sizes_of_a_mixture_add_up_to_its_parameters():
    model = empty("qwen2_moe")
    sizes = part_sizes(model)
    assert {part: size.trained for part, size in sizes.items()} == {
        "embeddings": 300 * 16,
        "attention": ATTENTION + 16 + 8 + 8,  # biases of q, k and v
        "experts": 4 * 3 * 16 * 8,
        "shared experts": 3 * 16 * 8,
        "router": 4 * 16 + 16,
        "norms": 3 * 16,
        "head": 300 * 16,
    }
    assert sum(size.trained for size in sizes.values()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen2_moe"])
def test_all_linear_adapts_routed_experts_only_if_they_are_named(name):
    """peft's all-linear adapts those of Mixtral and Qwen3, with their router, but not Qwen2's."""
    plain, both = trained(name, LORA), trained(name, EXPERTS)
    shared = {"shared experts": 2 * 3 * (16 + 8), "router": 2 * (16 + 1)}
    expected = {"attention": ADAPTED} | (shared if name == "qwen2_moe" else {})
    assert plain == expected
    inner = family(name).get_text_config().to_dict().get("moe_intermediate_size", 32)
    assert both == {**expected, "experts": 4 * 2 * ((16 + 2 * inner) + (inner + 16))}


def test_layers_that_peft_takes_for_experts_are_skipped_or_refused():
    model = empty("deepseek_v3")
    targets = check_targets(LORA, model)
    adapted = with_adapter(model, lora_config(LORA, model))
    assert not any("shared_experts" in name for name in targets)
    assert len(targets) == sum(hasattr(module, "lora_A") for module in adapted.modules())
    with pytest.raises(RecipeError) as refused:
        check_targets(Lora(target_modules=["o_proj", "up_proj"]), empty("deepseek_v3"))
    assert refused.value.problems[0].code == "MDL011"


def test_towers_of_a_multimodal_model_get_no_adapter_unless_the_recipe_names_them():
    model = empty("gemma3")
    in_tower = Lora(target_modules=["vision_tower.encoder.layers.0.mlp.fc1"])
    assert trained("gemma3", LORA).keys() == {"attention", "MLP"}
    listed = Lora(rank=2, dropout=0.0, target_modules=["q_proj"])
    assert trained("gemma3", listed) == {"attention": 2 * (16 + 16)}
    assert check_targets(in_tower, model) == ["model.vision_tower.encoder.layers.0.mlp.fc1"]
    with pytest.raises(RecipeError):
        check_targets(Lora(target_modules=["fc1"]), model)
    lines = table_of(part_sizes(model))
    assert lines[0].split() == ["parts:", "trained", "frozen", "not", "reached"]
    assert len({len(line) for line in lines}) == 1


def test_rows_of_text_reach_all_parts_but_towers():
    model = AutoModelForCausalLM.from_config(family("gemma3"))
    model(input_ids=torch.tensor([[0, 8, 9, 1]])).logits.sum().backward()
    unreached = {name for name, p in model.named_parameters() if p.grad is None}
    assert unreached == {name for name, _ in model.named_parameters() if tower_of(name)}
    freeze_towers(model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == unreached


def test_check_parameters_of_unknown_names_are_refused():
    chosen = Lora(dropout=0.0, target_parameters=["experts.down_proj"])
    assert check_parameters(chosen, empty("mixtral")) == ["experts.down_proj"]
    for options, name in ((EXPERTS, "gemma3"), (chosen, "gemma3")):
        with pytest.raises(RecipeError) as refused:
            check_parameters(options, empty(name))
        assert refused.value.problems[0].path == "lora.target_parameters"


@pytest.mark.memory
def test_run_of_a_multimodal_model_keeps_its_towers_and_its_processor(
    recipe_data, make_recipe, dry_run, tiny_model, tmp_path
):
    folder = save_family("gemma3", tiny_model, tmp_path / "gemma3")
    recipe_data["model"]["name_or_path"] = str(folder)
    code, document, printed = dry_run(recipe_data)
    assert (code, document["will_run"]) == (0, True)
    assert "has no processor" in printed
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3"}')
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    assert (Path(outcome.model) / "preprocessor_config.json").is_file()
    parts = RunRecord.load(RunDir(outcome.output_dir)).parts
    assert parts == document["parts"]
    assert parts["vision tower"]["not_reached"] > 0
    before, after = (load_file(Path(f) / "model.safetensors") for f in (folder, outcome.model))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not any(tower_of(name) for name in changed)


def test_run_that_adapts_experts_is_merged_by_the_next(
    recipe_data, make_recipe, tiny_model, tmp_path
):
    folder = save_family("qwen2_moe", tiny_model, tmp_path / "qwen2_moe")
    recipe_data["model"]["name_or_path"] = str(folder)
    recipe_data["lora"] = {"rank": 2, "dropout": 0.0, "target_parameters": "experts"}
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    record = RunRecord.load(RunDir(outcome.output_dir))
    assert record.parts["experts"]["trained"] == 4 * 2 * ((16 + 16) + (8 + 16))
    assert set(record.effective["lora"]["target_parameters"]) == {
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    last = metric_rows(outcome.output_dir)[-1]
    assert last["eval_aux_loss"] > 0
    model = {"name_or_path": outcome.model, "adapter": "merge"}
    merged = {**recipe_data, "model": model, "output_dir": str(tmp_path / "merged")}
    del merged["lora"]
    recipe = make_recipe(merged).recipe
    first = metric_rows(train(recipe, recipe.dpo).output_dir)[0]
    assert first["eval_logps/chosen"] == pytest.approx(last["eval_logps/chosen"], rel=1e-5)
