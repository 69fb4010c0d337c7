"""What a run starts from: a model, or a base with a LoRA adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from prefcli.errors import Problem, RecipeError
from prefcli.model.stacking import check_stackable
from prefcli.model.weights import load_model, loading
from prefcli.recipe.sections import Lora, Model

_CHOICES = (
    "say what to do with it, in model.adapter: continue (train this adapter on), stack (a new one "
    "over it, from the lora section) or merge (into its base, trained in full); the reference is "
    "the policy with this adapter in each case"
)


@dataclass(frozen=True)
class Start:
    """`base` names plain weights; `adapter` is what lies on them, if anything does."""

    base: Model
    adapter: LoraConfig | None = None


def holds_adapter(name: str, revision: str | None = None) -> bool:
    """Is this folder, or this hub repository, a LoRA adapter?"""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except (OSError, ValueError):
        return False  # not there at all: whoever loads it says so


def start_of(options: Model, above: Lora | None = None) -> Start:
    """Raises RecipeError where it is a guess what the policy, and so the reference, would be.

    above: the new adapter, where one is stacked on the one that is there.
    """
    if not holds_adapter(options.name_or_path, options.revision):
        if options.adapter is not None:
            raise RecipeError(
                Problem(
                    f"{options.name_or_path} holds no adapter to {options.adapter}",
                    path="model.adapter",
                    hint="leave it out",
                )
            )
        return Start(options)
    if options.adapter is None:
        raise RecipeError(
            Problem(
                f"{options.name_or_path} holds a LoRA adapter, not a model",
                path="model.name_or_path",
                hint=_CHOICES,
            )
        )
    with loading(options, "adapter"):
        config = PeftConfig.from_pretrained(options.name_or_path, revision=options.revision)
    if not isinstance(config, LoraConfig):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} holds an adapter of type {config.peft_type}",
                path="model.name_or_path",
                hint="only LoRA adapters are trained on; merge this one into its base first",
            )
        )
    if options.adapter == "stack" and above is not None:
        check_stackable(config, above)
    base = config.base_model_name_or_path
    if not base:
        raise RecipeError(
            Problem(
                f"the adapter in {options.name_or_path} does not name its base",
                path="model.name_or_path",
                hint="write base_model_name_or_path into its adapter_config.json",
            )
        )
    return Start(
        options.model_copy(
            update={"name_or_path": base, "revision": config.revision, "adapter": None}
        ),
        config,
    )


def load_policy(options: Model, dtype: torch.dtype, seed: int) -> PreTrainedModel | PeftModel:
    """The starting policy on the CPU: plain weights, or a PeftModel whose adapter is trained on."""
    start = start_of(options)
    if start.adapter is None:
        return load_model(options, dtype, seed)
    # A merge in bfloat16 would round away most of what the adapter has learned.
    whole = torch.float32 if options.adapter != "continue" else dtype
    base = load_model(start.base, whole, seed)
    with loading(options, "adapter"):
        policy = PeftModel.from_pretrained(
            base,
            options.name_or_path,
            revision=options.revision,
            is_trainable=options.adapter == "continue",
        )
    if options.adapter == "continue":
        return policy
    merged = policy.merge_and_unload().to(dtype)
    merged.config.dtype = dtype
    # The adapter had frozen them.
    return merged.requires_grad_(True)


def load_reference(
    name: str, revision: str | None, options: Model, dtype: torch.dtype
) -> PreTrainedModel:
    """Another model than the starting policy, loaded as that one is, its adapter merged."""
    other = {
        "name_or_path": name,
        "revision": revision,
        "adapter": "merge" if holds_adapter(name, revision) else None,
        "init": "pretrained",
    }
    return load_policy(options.model_copy(update=other), dtype, seed=0)
