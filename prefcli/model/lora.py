"""LoRA: peft's config, the target layers, and adapters on a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel

from prefcli.errors import Problem, RecipeError
from prefcli.model.parts import expert_parameters, tower_of, towers
from prefcli.model.reward_head import head_of, is_reward_model, output_heads
from prefcli.recipe.sections import Lora

_HEADS_OF_PEFT = ("classifier", "score")
"""Names of the heads that peft trains whole by itself."""


def lora_config(options: Lora, model: PreTrainedModel, revision: str | None = None) -> LoraConfig:
    """Build peft's config for a model. revision: the model's, which loading the adapter needs.

    Raises RecipeError for a layer or a parameter that the model does not have.
    """
    targets = check_targets(options, model)
    # peft's own all-linear includes towers, and experts that no longer are linear layers.
    if options.target_modules != "all-linear" and not towers(model):
        targets = _named_targets(options.target_modules, model)
    return LoraConfig(
        revision=revision,
        task_type=TaskType.SEQ_CLS if is_reward_model(model) else TaskType.CAUSAL_LM,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        target_parameters=check_parameters(options, model) or None,
        modules_to_save=_whole_layers(options, model) or None,
        # A head that is the embedding stays the embedding.
        ensure_weight_tying=bool(options.modules_to_save),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )


def _whole_layers(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the layers that are trained whole: those of the recipe, and the head of rewards."""
    heads = [*head_of(model)] if is_reward_model(model) else []
    own = [name for name in heads if name not in _HEADS_OF_PEFT]
    return [*(options.modules_to_save or []), *own]  # a copy, since peft adds to it


def _named_targets(named: str | list[str], model: PreTrainedModel) -> list[str]:
    """Return the layers that the recipe names, or that peft chooses for the architecture.

    Raises RecipeError if peft does not know the architecture.
    """
    if not isinstance(named, str):
        return named
    architecture = model.config.model_type
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture)
    if targets is None:
        raise _invalid_target(
            f"peft has no default layers for the architecture {architecture}",
            "write all-linear, or a list of layers",
        )
    return list(targets)


def check_targets(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the names of the layers that get an adapter. Raises RecipeError."""
    _check_whole_layers(options, model)
    linear = _linear_layers(options, model)
    if options.target_modules == "all-linear":
        skipped = skipped_layers(options, model)
        return [name for name in linear if name not in skipped]
    targets: list[str] = []
    for target in _named_targets(options.target_modules, model):
        matched = [n for n in linear if n == target or n.endswith(f".{target}")]
        if not matched:
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise _invalid_target(
                f"the model has no linear layer named {target!r}",
                f"choose from {', '.join(names)}; or write all-linear",
            )
        if moved := _moved_to_experts(matched, model):
            raise _invalid_target(
                f"peft gives the adapter of {min(moved)} to the routed experts of a "
                f"{model.config.model_type} model instead",
                f"remove {target}; to adapt the experts, write lora.target_parameters: experts",
            )
        targets += matched
    return targets


def _check_whole_layers(options: Lora, model: PreTrainedModel) -> None:
    """Check that modules_to_save are the embeddings or the output head. Raises RecipeError."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in ends]
    for name in options.modules_to_save or []:
        if name not in names:
            raise _invalid_target(
                f"{name!r} is not the embedding or the output head of the model",
                f"choose from {', '.join(names)}",
                path="lora.modules_to_save",
            )


def skipped_layers(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the linear layers that all-linear skips, since peft cannot adapt them."""
    if options.target_modules != "all-linear":
        return []
    linear = _linear_layers(options, model)
    moved = _moved_to_experts(linear, model)
    return [name for name in linear if name in moved]


def _linear_layers(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the linear layers except the head; those of towers only if the recipe names some."""
    named = options.target_modules
    heads = [part for head in output_heads(model) for part in head.modules()]
    with_towers = not isinstance(named, str) and any(tower_of(name) is not None for name in named)
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and all(module is not head for head in heads)
        and (with_towers or tower_of(name) is None)
    ]


def _moved_to_experts(names: list[str], model: PreTrainedModel) -> set[str]:
    """Return the layers whose names peft takes for those of experts in an older transformers.

    In some mixtures that includes shared experts and dense layers, which peft cannot adapt there.
    """
    config = LoraConfig(target_modules=names)
    with suppress(ValueError):  # some of the names are fused with others that are not given
        convert_peft_config_for_transformers(config, model, None)
        return set(names) - set(config.target_modules or ())
    return set(names)


def check_parameters(options: Lora, model: PreTrainedModel) -> list[str]:
    """Return the parameters outside linear layers that get an adapter. Raises RecipeError."""
    chosen = options.target_parameters
    if chosen is None:
        return []
    experts = expert_parameters(model)
    if chosen == "experts":
        if not experts:
            raise _invalid_target(
                "the model has no parameter that holds the weights of all routed experts",
                "remove it; all-linear adapts experts that are linear layers",
                path="lora.target_parameters",
            )
        return experts
    names = [name for name, _ in model.named_parameters()]
    for parameter in chosen:
        if not any(n == parameter or n.endswith(f".{parameter}") for n in names):
            raise _invalid_target(
                f"the model has no parameter named {parameter!r}",
                f"choose from {', '.join(experts)}" if experts else "remove it",
                path="lora.target_parameters",
            )
    return list(chosen)


def _invalid_target(what: str, hint: str, path: str = "lora.target_modules") -> RecipeError:
    return RecipeError(Problem(what, path=path, hint=hint, code="MDL011"))


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
    """Set every dropout to 0 except the adapters' own, which trl's option would disable as well.

    trl's option skips dropout without a module: the attention of most models, and all of OPT's.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." not in name:
            module.p = 0.0
        for attribute, value in vars(module).items():
            if "drop" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)


def freeze_reference_adapter(model: torch.nn.Module) -> None:
    """Set the dropout of trl's frozen copy of an adapter to 0, so that the reference is exact."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout.ref") and isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def has_whole_layers(model: torch.nn.Module) -> bool:
    """Check for layers that are trained together with an adapter, in another dtype than its base.

    Such a model only runs under autocast.
    """
    return any(".modules_to_save." in name for name, _ in model.named_parameters())


def restore_whole_layers(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Load the whole layers of an adapter in float32; peft rounds them to the dtype of the base.

    weights: of the adapter's file.
    """
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name and parameter.dtype != torch.float32:
            exact = weights[name.replace(".modules_to_save.default", "")]
            parameter.data = exact.to(parameter.device, torch.float32)


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
