"""What a run starts from: a model, or a base with a LoRA adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import load_peft_weights
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from prefcli.errors import Problem, RecipeError
from prefcli.hub.cache import ADAPTER_WEIGHTS
from prefcli.model.loading import load_config, load_model, loading, missing_folder
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Model, Reference

_CHOICES = (
    "say what to do with it, in model.adapter: continue (train this adapter on), stack (a new one "
    "over it, from the lora section) or merge (into its base, trained in full); the reference is "
    "the policy with this adapter in each case"
)


@dataclass(frozen=True)
class ModelSource:
    """`base` names what the adapter lies on, if there is one, and else the weights themselves."""

    base: Model
    adapter: LoraConfig | None = None


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Is this folder, or this hub repository, a LoRA adapter?"""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    return _hub_adapter(name, revision)


@lru_cache
def _hub_adapter(name: str, revision: str | None) -> bool:
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except (OSError, ValueError):
        return False  # not there at all: whoever loads it says so


def resolve_model(options: Model, *, where: str = "model") -> ModelSource:
    """Raises RecipeError where it is a guess what the policy, and so the reference, would be.

    where: the section of the recipe that names the model.
    """
    path = f"{where}.name_or_path"
    if not is_adapter(options.name_or_path, options.revision):
        if options.adapter is not None:
            with loading(options, "adapter", where):
                pass  # not there at all?
            raise RecipeError(
                Problem(
                    f"{options.name_or_path} holds no adapter to {options.adapter}",
                    path="model.adapter",
                    hint="leave it out",
                )
            )
        return ModelSource(options)
    if options.adapter is None:
        raise RecipeError(
            Problem(
                f"{options.name_or_path} holds a LoRA adapter, not a model",
                path=path,
                hint=_CHOICES,
            )
        )
    with loading(options, "adapter", where):
        config = PeftConfig.from_pretrained(options.name_or_path, revision=options.revision)
    if not isinstance(config, LoraConfig):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} holds an adapter of type {config.peft_type}",
                path=path,
                hint="only LoRA adapters are trained on; merge this one into its base first",
            )
        )
    _safe_weights(options, where)
    base = config.base_model_name_or_path
    if not base:
        raise RecipeError(
            Problem(
                f"the adapter in {options.name_or_path} does not name its base",
                path=path,
                hint="write base_model_name_or_path into its adapter_config.json",
            )
        )
    if missing_folder(base):
        raise RecipeError(
            Problem(
                f"the adapter in {options.name_or_path} lies on {base}, which is not there",
                path=path,
                hint="put it back, or correct base_model_name_or_path in the adapter_config.json",
            )
        )
    under = "merge" if is_adapter(base, config.revision) else None
    if under and options.adapter != "merge":
        raise RecipeError(
            Problem(
                f"{options.name_or_path} is a checkpoint of a run that was stacked on an adapter, "
                f"in {base}",
                path=path,
                hint="start from that run's model/, which is the sum of both; or write merge",
            )
        )
    return ModelSource(
        options.model_copy(
            update={"name_or_path": base, "revision": config.revision, "adapter": under}
        ),
        config,
    )


def _safe_weights(options: Model, where: str) -> None:
    """peft would fall back to pickled ones."""
    name = options.name_or_path
    folder = Path(name).expanduser()
    there = (folder / ADAPTER_WEIGHTS).is_file()
    if not folder.is_dir():
        with loading(options, "adapter", where):
            there = _on_hub(name, ADAPTER_WEIGHTS, options.revision)
    if not there:
        raise RecipeError(
            Problem(
                f"{name} holds no {ADAPTER_WEIGHTS}; pickled weights can run code, and are not "
                "read",
                path=f"{where}.name_or_path",
                hint="convert them with peft's save_pretrained, on a machine you can spare",
            )
        )


@lru_cache
def _on_hub(name: str, file: str, revision: str | None) -> bool:
    """Brought into the cache if it is. Raises OSError where nobody can tell."""
    try:
        hf_hub_download(name, file, revision=revision)
    except LocalEntryNotFoundError as error:
        raise OSError(str(error)) from None
    except EntryNotFoundError:
        return False
    return True


def check_model(recipe: Recipe) -> ModelSource:
    """`start_of` the recipe's model, once its adapter is known to suit what is done with it.

    One that holds more than pairs of matrices on inner layers does not suit every use.
    """
    options, above = recipe.model, recipe.lora
    start = resolve_model(options)
    config = start.adapter
    if config is None or options.adapter == "merge":
        return start
    with loading(options, "adapter"):
        weights = load_peft_weights(options.name_or_path, device="cpu", revision=options.revision)
    odd = sorted({key for key in weights if ".lm_head.lora_" in key or "lora_embedding" in key})
    settings = {
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "target_parameters": bool(config.target_parameters),
    }
    if options.adapter == "stack":
        settings |= {
            "use_dora": config.use_dora or (above is not None and above.use_dora),
            "modules_to_save": bool(config.modules_to_save),
            "trainable_token_indices": bool(config.trainable_token_indices),
        }
        matrices = (".lora_A.weight", ".lora_B.weight")
        odd += [k for k, w in weights.items() if not k.endswith(matrices) or w.dim() != 2]
    found = [name for name, there in settings.items() if there] or odd[:1]
    if found:
        raise RecipeError(
            Problem(
                f"{options.adapter} can't take an adapter with {', '.join(found)}",
                path="model.adapter",
                hint="write merge, or merge it into its base beforehand",
            )
        )
    return start


def load_base_config(options: Model, *, where: str = "model") -> PretrainedConfig:
    """The architecture at the bottom, under any adapters. Raises RecipeError."""
    start = resolve_model(options, where=where)
    if start.adapter is None:
        return load_config(options, where)
    return load_base_config(start.base, where=where)


def load_policy(
    options: Model, dtype: torch.dtype, seed: int, *, where: str = "model"
) -> PreTrainedModel | PeftModel:
    """The starting policy on the CPU: plain weights, or a PeftModel whose adapter is trained on."""
    start = resolve_model(options, where=where)
    if start.adapter is None:
        return load_model(options, dtype, seed, where)
    # Rounded once, after the sum; an adapter's small numbers would not survive more.
    whole = torch.float32 if options.adapter != "continue" else dtype
    base = load_policy(start.base, whole, seed, where=where)
    with loading(options, "adapter", where):
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


def merged(options: Model) -> Model:
    """For use as it is: an adapter that nothing is decided of goes into its base, whole weights."""
    if options.adapter is not None or not is_adapter(options.name_or_path, options.revision):
        return options
    return options.model_copy(update={"adapter": "merge", "quantization": None})


def reference_model(reference: Reference, policy: Model) -> Model | None:
    """The named reference as a model section, its adapter merged; None for the starting policy."""
    if reference.name_or_path is None:
        return None
    named = {
        "name_or_path": reference.name_or_path,
        "revision": reference.revision,
        "adapter": None,
        "init": "pretrained",
    }
    return merged(policy.model_copy(update=named))
