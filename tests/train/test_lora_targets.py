"""The layers that get an adapter."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from prefcli.errors import RecipeError
from prefcli.model.lora import check_targets, lora_config
from prefcli.recipe.sections import Lora

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
    adapted = get_peft_model(model, lora_config(options))
    assert set(adapted.peft_config["default"].target_modules) == layers


def test_default_targets_of_an_architecture_that_peft_does_not_know_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, intermediate_size=8))
    model.config.model_type = "unheard"
    with pytest.raises(RecipeError) as error:
        check_targets(Lora(target_modules="default"), model)
    assert error.value.problems[0].code == "MDL011"
