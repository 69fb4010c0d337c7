"""The model as its config describes it: its parts, and how much of it will be trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefcli.errors import Problem, RecipeError
from prefcli.memory.fake_models import Architectures
from prefcli.memory.sharding import Sizes, blocks
from prefcli.model import (
    check_targets,
    count_parameters,
    load_base_config,
    lora_config,
    with_adapter,
)
from prefcli.model.base_model import ModelSource, reference_model
from prefcli.model.loading import context_length, empty_model
from prefcli.recipe.schema import Recipe

_SUPPORT = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""transformers' flag for each attention implementation."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts about the policy and its reference that need no weights."""

    architectures: Architectures
    name: str
    """Class of the policy."""
    parameters: int
    """Of the model without adapters."""
    trainable: int
    adapted: dict[str, int]
    """How many layers get an adapter, by the last part of their names."""
    rank: int | None
    tied: bool
    vocabulary: int
    context: int | None
    sizes: Sizes

    def lines(self, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
        """Describe the model for the log."""
        embeddings = "tied" if self.tied else "untied"
        context = f", context of {self.context}" if self.context else ""
        tokens = f" for {len(tokenizer)} tokens" if tokenizer is not None else ""
        trained = f", {self.trainable:,} of them trained" if self.rank is None else ""
        lines = [
            f"model: {self.name}, {self.parameters:,} parameters{trained}",
            f"model: {embeddings} embeddings, vocabulary of {self.vocabulary}{tokens}{context}",
        ]
        if self.rank is not None:
            layers = ", ".join(f"{count} {name}" for name, count in self.adapted.items())
            lines.append(
                f"lora: rank {self.rank} on {sum(self.adapted.values())} layers ({layers}): "
                f"{self.trainable:,} parameters trained"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.name,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "lora_layers": sum(self.adapted.values()),
            "tied_embeddings": self.tied,
            "vocabulary": self.vocabulary,
            "context": self.context,
        }


def describe_model(recipe: Recipe, start: ModelSource, config: PretrainedConfig) -> ModelInfo:
    """Build the modules without weights and count them.

    Raises RecipeError if LoRA's layers, the attention implementation or the architecture itself
    do not exist.
    """
    model = empty_model(config, recipe.model)
    _check_attention(recipe, model)
    class_name = type(model).__name__
    total, _ = count_parameters(model)
    layer, root = blocks(model)
    targets: list[str] = []
    adapter = None
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, model)
        adapter = lora_config(recipe.lora)
    elif recipe.model.adapter == "continue":
        adapter = start.adapter
    trainable = total
    if adapter is not None:
        peft = with_adapter(model, adapter)
        _, trainable = count_parameters(peft)
        targets = targets or [
            name for name, module in peft.named_modules() if hasattr(module, "lora_A")
        ]
    named = reference_model(recipe.reference, recipe.model)
    reference = load_base_config(named, where="reference") if named is not None else None
    reference_size = (
        count_parameters(empty_model(reference, recipe.model))[0]
        if reference is not None
        else total
    )
    text = config.get_text_config()
    return ModelInfo(
        architectures=Architectures(
            config, start.adapter if recipe.model.adapter == "continue" else None, reference
        ),
        name=class_name,
        parameters=total,
        trainable=trainable,
        adapted=dict(Counter(name.rpartition(".")[2] for name in targets)),
        rank=adapter.r if adapter is not None else None,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        vocabulary=text.vocab_size,
        context=context_length(config),
        sizes=Sizes(
            policy=total + (trainable if adapter is not None else 0),
            trainable=trainable,
            reference=0 if adapter is not None and reference is None else reference_size,
            layer=layer,
            root=root,
        ),
    )


def _check_attention(recipe: Recipe, model: PreTrainedModel) -> None:
    requested = recipe.model.attn_implementation
    if requested in _SUPPORT and not getattr(model, _SUPPORT[requested], False):
        supported = [name for name, flag in _SUPPORT.items() if getattr(model, flag, False)]
        raise RecipeError(
            Problem(
                f"{type(model).__name__} does not support {requested}",
                path="model.attn_implementation",
                hint=f"write auto, eager{''.join(f', {name}' for name in supported)}",
                code="TRN030",
            )
        )
