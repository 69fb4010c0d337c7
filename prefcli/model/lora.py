"""LoRA as peft spells it, and proof that its targets exist."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from transformers import PreTrainedModel

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.sections import Lora


def lora_config(options: Lora, revision: str | None = None) -> LoraConfig:
    """revision: of the model that the adapter lies on; whoever loads it needs the same."""
    return LoraConfig(
        revision=revision,
        task_type=TaskType.CAUSAL_LM,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=INCLUDE_LINEAR_LAYERS_SHORTHAND
        if options.target_modules == "all-linear"
        else list(options.target_modules),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )


def check_targets(options: Lora, model: PreTrainedModel) -> list[str]:
    """Names of the layers that get an adapter. Raises RecipeError listing what there is."""
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    }
    if options.target_modules == "all-linear":
        return list(linear)
    found: list[str] = []
    for target in options.target_modules:
        matched = [n for n in linear if n == target or n.endswith(f".{target}")]
        if not matched:
            there = sorted({name.rpartition(".")[2] for name in linear})
            raise RecipeError(
                Problem(
                    f"no linear layer is called {target!r}",
                    path="lora.target_modules",
                    hint=f"this model has {', '.join(there)}; or write all-linear",
                )
            )
        found += matched
    return found


def trainable(config: LoraConfig) -> LoraConfig:
    """A saved adapter's, which is frozen until it is trained on."""
    config = copy.copy(config)
    config.inference_mode = False
    return config


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """An empty model with its adapter, to be counted. Raises RecipeError where peft refuses it."""
    try:
        with torch.device("meta"):
            return get_peft_model(model, trainable(config), low_cpu_mem_usage=True)
    except ValueError as error:
        experts = "lora_dropout" in str(error)
        raise RecipeError(
            Problem(
                f"peft can't adapt this model so: {error}",
                path="lora.dropout" if experts else "lora.target_modules",
                hint="experts take an adapter without dropout: write lora.dropout: 0"
                if experts
                else "name other layers",
            )
        ) from None


def disable_base_dropout(model: torch.nn.Module) -> None:
    """Switch off every dropout but the adapters' own; trl's switch knows no difference."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." not in name:
            module.p = 0.0


def freeze_reference_adapter(model: torch.nn.Module) -> None:
    """trl's frozen copy of an adapter keeps its dropout, which would blur the reference."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout.ref") and isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@torch.no_grad()
def train_in_float32(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """trl rounds the adapters of a quantised base to bfloat16, where a step of 5e-6 is lost on any
    weight above 1e-3. `before`: what an adapter that is trained on held until then.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            whole = before.get(name, parameter.data)
            parameter.data = whole.to(parameter.device, torch.float32)
