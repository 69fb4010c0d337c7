"""LoRA: peft's config, the target layers, and adapters on a model."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import (
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.sections import Lora

_PEFT_TARGETS = {"all-linear": INCLUDE_LINEAR_LAYERS_SHORTHAND, "default": None}


def lora_config(options: Lora, revision: str | None = None) -> LoraConfig:
    """Build peft's config. revision: the base model's, which loading the adapter needs."""
    return LoraConfig(
        revision=revision,
        task_type=TaskType.CAUSAL_LM,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=_PEFT_TARGETS[options.target_modules]
        if isinstance(options.target_modules, str)
        else list(options.target_modules),
        modules_to_save=list(options.modules_to_save or []) or None,  # peft adds to it
        # A head that is the embedding stays the embedding.
        ensure_weight_tying=bool(options.modules_to_save),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )


def _default_targets(model: PreTrainedModel) -> list[str]:
    """Return the layers that peft chooses for the model's architecture. Raises RecipeError."""
    architecture = model.config.model_type
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture)
    if targets is None:
        raise RecipeError(
            Problem(
                f"peft has no default layers for the architecture {architecture}",
                path="lora.target_modules",
                hint="write all-linear, or a list of layers",
                code="MDL011",
            )
        )
    return list(targets)


def check_targets(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the names of the layers that get an adapter. Raises RecipeError."""
    head = model.get_output_embeddings()
    _check_whole_layers(options, model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    }
    if options.target_modules == "all-linear":
        return list(linear)
    names_of_layers = options.target_modules
    if names_of_layers == "default":
        names_of_layers = _default_targets(model)
    targets: list[str] = []
    for target in names_of_layers:
        matched = [n for n in linear if n == target or n.endswith(f".{target}")]
        if not matched:
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise RecipeError(
                Problem(
                    f"the model has no linear layer named {target!r}",
                    path="lora.target_modules",
                    hint=f"choose from {', '.join(names)}; or write all-linear",
                    code="MDL011",
                )
            )
        targets += matched
    return targets


def _check_whole_layers(options: Lora, model: PreTrainedModel) -> None:
    """Check that modules_to_save are the embeddings or the output head. Raises RecipeError."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in ends]
    for name in options.modules_to_save or []:
        if name not in names:
            raise RecipeError(
                Problem(
                    f"{name!r} is not the embedding or the output head of the model",
                    path="lora.modules_to_save",
                    hint=f"choose from {', '.join(names)}",
                    code="MDL011",
                )
            )


def trainable_config(config: LoraConfig) -> LoraConfig:
    """Return a copy of a saved adapter's config, which is frozen, for training."""
    config = copy.copy(config)
    config.inference_mode = False
    return config


def empty_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Add an adapter to a model on the meta device. Raises what peft raises."""
    with torch.device("meta"):
        return get_peft_model(model, trainable_config(config), low_cpu_mem_usage=True)


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Add an adapter to a model on the meta device. Raises RecipeError if peft refuses it."""
    try:
        return empty_adapter(model, config)
    except ValueError as error:
        is_dropout = "lora_dropout" in str(error)
        raise RecipeError(
            Problem(
                f"peft refuses this adapter: {error}",
                path="lora.dropout" if is_dropout else "lora.target_modules",
                hint="write lora.dropout: 0; adapters on experts do not support dropout"
                if is_dropout
                else "name other layers",
                code="MDL011",
            )
        ) from None


def disable_base_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to 0 except the adapters' own, which trl's option would disable as well."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." not in name:
            module.p = 0.0


def freeze_reference_adapter(model: torch.nn.Module) -> None:
    """Set the dropout of trl's frozen copy of an adapter to 0, so that the reference is exact."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout.ref") and isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@torch.no_grad()
def train_in_float32(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Train adapters of a quantized base, and the whole layers next to an adapter, in float32.

    trl and peft keep them in bfloat16, which loses a step of 5e-6 on any weight above 1e-3.
    before: the unrounded weights of an adapter that is trained further.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            exact = before.get(name, parameter.data)
            parameter.data = exact.to(parameter.device, torch.float32)
