"""The layers that get an adapter, or are trained whole."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from prefcli.model.lora import check_targets, lora_config
from prefcli.recipe.sections import Lora
from prefcli.training.run import train
from tests.support.tiny_tokenizers import chatml, letters

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LlamaConfig(**SMALL, intermediate_size=8), {"q_proj", "v_proj"}),
        (GPT2Config(**SMALL), {"c_attn"}),
    ],
    ids=["llama", "gpt2"],
)
def test_default_targets_are_those_of_peft(config, layers):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    options = Lora(target_modules="default")
    assert {name.rpartition(".")[2] for name in check_targets(options, model)} == layers
    adapted = get_peft_model(model, lora_config(options, model))
    assert set(adapted.peft_config["default"].target_modules) == layers


def test_default_targets_of_an_architecture_that_peft_does_not_know_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, intermediate_size=8))
    model.config.model_type = "unheard"
    with pytest.raises(RecipeError) as error:
        check_targets(Lora(target_modules="default"), model)
    assert error.value.problems[0].code == "MDL011"


def test_whole_layers_are_trained_and_saved_with_a_named_tokenizer(
    recipe_data, make_recipe, tiny_model, tmp_path
):
    """The head of this model is its embedding, and stays so."""
    base = tmp_path / "tied"
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    chatml().save_pretrained(tmp_path / "chatml")
    recipe_data["model"] |= {"name_or_path": str(base), "tokenizer": str(tmp_path / "chatml")}
    recipe_data["lora"] = {"rank": 2, "modules_to_save": ["embed_tokens"]}
    recipe_data["training"]["learning_rate"] = 1e-2
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    assert AutoTokenizer.from_pretrained(run.model).eos_token == "<|im_end|>"
    saved = AutoPeftModelForCausalLM.from_pretrained(run.model).merge_and_unload()
    start = AutoModelForCausalLM.from_pretrained(base)
    head, embedding = saved.get_output_embeddings(), saved.get_input_embeddings()
    assert torch.equal(head.weight, embedding.weight)
    assert not torch.equal(head.weight, start.get_output_embeddings().weight)


def test_whole_layers_are_the_embedding_or_the_head():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, intermediate_size=8))
    check_targets(Lora(modules_to_save=["embed_tokens", "lm_head"]), model)
    with pytest.raises(RecipeError) as error:
        check_targets(Lora(modules_to_save=["norm"]), model)
    assert error.value.problems[0].path == "lora.modules_to_save"


def test_tokenizer_with_more_tokens_than_the_embedding_is_refused(dry_run, recipe_data, tmp_path):
    letters("</s>", *(f"<{i}>" for i in range(999)), eos_token="</s>").save_pretrained(
        tmp_path / "large"
    )
    recipe_data["model"]["tokenizer"] = str(tmp_path / "large")
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    assert document["problems"][0].items() >= {"code": "MDL022", "path": "model.tokenizer"}.items()
