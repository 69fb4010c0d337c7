"""The model as its config describes it: its parts, and how much of it will be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
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
from prefcli.model.loading import context_length, empty_model, loading
from prefcli.model.lora import skipped_layers
from prefcli.model.parts import (
    EXPERTS,
    PartSize,
    freeze_towers,
    part_sizes,
    sizes_as_dict,
    table_of,
)
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
    parts: Mapping[str, PartSize]
    """What is trained of each part of the policy, with its adapter."""
    target_parameters: Sequence[str] = ()
    """Parameters outside linear layers that get an adapter."""
    skipped: Sequence[str] = ()
    """Linear layers that all-linear skips, since peft cannot adapt them."""

    def brief_lines(self) -> list[str]:
        """Describe the model in one line, and an adapter in another."""
        model, _, *others = self.lines(None)
        return [model, *(line for line in others if line.startswith("lora: "))]

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
            lines += self._unadapted_lines()
        return [*lines, *table_of(self.parts)]

    def _unadapted_lines(self) -> list[str]:
        """Describe the parts of a mixture of experts that get no adapter, or an unusual one."""
        lines = []
        experts = self.parts.get(EXPERTS)
        if self.target_parameters:
            lines.append(f"lora: adapters on the parameters {', '.join(self.target_parameters)}")
        elif experts is not None and not experts.trained:
            lines.append(
                f"lora: no adapter on the routed experts ({experts.frozen:,} parameters), which "
                "are not linear layers: write lora.target_parameters: experts and "
                "lora.dropout: 0 to adapt them"
            )
        if self.skipped:
            lines.append(
                f"lora: no adapter on {len(self.skipped)} linear layers such as {self.skipped[0]}: "
                "peft takes their names for those of experts"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.name,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "lora_layers": sum(self.adapted.values()),
            "parts": sizes_as_dict(self.parts),
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
    skipped: list[str] = []
    adapter = None
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, model)
        skipped = skipped_layers(recipe.lora, model)
        adapter = lora_config(recipe.lora, model)
    elif recipe.model.adapter == "continue":
        adapter = start.adapter
    policy: PreTrainedModel | PeftModel = model
    if adapter is None:
        freeze_towers(model)
    else:
        # The config of a saved adapter may hold anything.
        saved = loading(recipe.model, "adapter") if recipe.lora is None else nullcontext()
        with saved:
            policy = peft = with_adapter(model, adapter)
        targets = targets or [
            name for name, module in peft.named_modules() if hasattr(module, "lora_A")
        ]
    _, trainable = count_parameters(policy)
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
        parts=part_sizes(policy),
        skipped=skipped,
        target_parameters=tuple(adapter.target_parameters or ()) if adapter is not None else (),
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
