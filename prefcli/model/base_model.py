"""The model that name_or_path names: a base model, or a base model with a LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from prefcli.hub.cache import ADAPTER_WEIGHTS, snapshot
from prefcli.model.loading import (
    absolute_name,
    check_weights,
    empty_model,
    load_config,
    load_model,
    loading,
    missing_folder,
    run_folder_hint,
)
from prefcli.model.lora import restore_whole_layers
from prefcli.model.weight_files import (
    check_adapter_files,
    check_values,
    read_adapter_files,
)
from prefcli.recipe.sections import Lora, Model, Reference

_ADAPTER_CHOICES = (
    "write model.adapter: continue (train this adapter further), stack (train a new adapter on top "
    "of it, from the lora section) or merge (merge it into its base, which is trained in full); in "
    "each case, the reference is the model with this adapter"
)


@dataclass(frozen=True)
class ModelSource:
    """The weights under a name_or_path, and the adapter on them if there is one."""

    base: Model
    adapter: LoraConfig | None = None


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Check whether a folder or hub repository is an adapter."""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    return _is_hub_adapter(name, revision)


@lru_cache
def _is_hub_adapter(name: str, revision: str | None) -> bool:
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except (OSError, ValueError):
        return False  # not found; loading it reports that


def resolve_model(options: Model, *, where: str = "model") -> ModelSource:
    """Find the base model and the adapter. Raises RecipeError if model.adapter is ambiguous.

    where: the section of the recipe that names the model.
    """
    path = f"{where}.name_or_path"
    name = options.name_or_path
    if not is_adapter(name, options.revision):
        if options.adapter is not None:
            with loading(options, "adapter", where):
                pass  # reports a missing folder first
            raise RecipeError(
                Problem(
                    f"{name} is not an adapter, so there is none to {options.adapter}",
                    path="model.adapter",
                    hint=run_folder_hint(Path(name).expanduser()) or "remove model.adapter",
                    code="MDL007",
                )
            )
        return ModelSource(options)
    if options.adapter is None:
        raise RecipeError(
            Problem(
                f"{name} is a LoRA adapter, not a full model",
                path=path,
                hint=_ADAPTER_CHOICES,
                code="MDL006",
            )
        )
    with loading(options, "adapter", where):
        config = PeftConfig.from_pretrained(name, revision=options.revision)
        for key in ("r", "lora_alpha", "lora_dropout"):
            if isinstance(value := getattr(config, key, None), bool):  # it would count as 0 or 1
                raise ValueError(f"{key} is {value} in adapter_config.json; expected a number")
    if not isinstance(config, LoraConfig):
        raise RecipeError(
            Problem(
                f"{name} is an adapter of type {config.peft_type}; only LoRA is supported",
                path=path,
                hint="merge it into its base model first",
                code="MDL008",
            )
        )
    _check_head(options, config, where)
    if options.head == "reward" and config.task_type != "SEQ_CLS":
        config = replace(config, task_type=None)  # peft would expect a language model
    _require_safetensors(options, where)
    base = config.base_model_name_or_path
    if not base or not isinstance(base, str):
        raise RecipeError(
            Problem(
                f"the adapter in {name} does not name its base model",
                path=path,
                hint="write base_model_name_or_path into its adapter_config.json",
                code="MDL009",
            )
        )
    if missing_folder(base):
        raise RecipeError(
            Problem(
                f"the adapter in {name} has the base model {base}, which does not exist",
                path=path,
                hint="restore that folder, or correct base_model_name_or_path in the "
                "adapter_config.json",
                code="MDL009",
            )
        )
    if absolute_name(base) == absolute_name(name):
        raise RecipeError(
            Problem(
                f"the adapter in {name} names itself as its base model",
                path=path,
                hint="correct base_model_name_or_path in its adapter_config.json",
                code="MDL009",
            )
        )
    base_adapter = "merge" if is_adapter(base, config.revision) else None
    if base_adapter and options.adapter != "merge":
        raise RecipeError(
            Problem(
                f"{name} is a checkpoint of a run with model.adapter: stack, on the adapter {base}",
                path=path,
                hint="start from that run's model/ folder, which has the sum of both adapters; or "
                "write model.adapter: merge",
                code="MDL010",
            )
        )
    return ModelSource(
        options.model_copy(
            update={"name_or_path": base, "revision": config.revision, "adapter": base_adapter}
        ),
        config,
    )


def _check_head(options: Model, config: LoraConfig, where: str) -> None:
    """Refuse an adapter that was trained with another head, where that is part of its use."""
    is_of_reward_model = config.task_type == "SEQ_CLS"
    if options.head == "language_model" and is_of_reward_model:
        raise RecipeError(
            Problem(
                f"{options.name_or_path} is the adapter of a reward model, which writes no text",
                path=f"{where}.name_or_path",
                hint="name a language model; `prefcli eval` and `prefcli score --reward-model` use "
                "a reward model",
                code="MDL032",
            )
        )
    if options.head == "reward" and (
        options.adapter == "stack" or (options.adapter == "continue" and not is_of_reward_model)
    ):
        raise RecipeError(
            Problem(
                f"a reward model can't {options.adapter} this adapter, which has no reward head",
                path="model.adapter",
                hint="write model.adapter: merge, or merge the adapter into its base first",
                code="MDL008",
            )
        )


def resolve_base(options: Model, *, where: str = "model") -> Model:
    """Return the full model under any adapters. Raises RecipeError."""
    source = resolve_model(options, where=where)
    return options if source.adapter is None else resolve_base(source.base, where=where)


def _require_safetensors(options: Model, where: str) -> None:
    """Refuse an adapter with pickled weights, which peft would load."""
    name = options.name_or_path
    folder = Path(name).expanduser()
    exists = (folder / ADAPTER_WEIGHTS).is_file()
    if not folder.is_dir():
        with loading(options, "adapter", where):
            exists = download_file(name, ADAPTER_WEIGHTS, options.revision) is not None
    if not exists:
        raise RecipeError(
            Problem(
                f"{name} has no {ADAPTER_WEIGHTS}; pickled weights can run code and are not loaded",
                path=f"{where}.name_or_path",
                hint="convert them with peft's save_pretrained in an isolated environment",
                code="MDL005",
            )
        )


@lru_cache
def download_file(name: str, file: str, revision: str | None) -> Path | None:
    """Download a file; None if the repository does not have it. Raises OSError without access."""
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise OSError(str(error)) from None
    except EntryNotFoundError:
        return None


def check_model(options: Model, lora: Lora | None) -> ModelSource:
    """Resolve the model and check that model.adapter supports the adapter's features.

    Adapters with more than pairs of matrices on inner layers can't be continued or stacked.
    """
    source = resolve_model(options)
    config = source.adapter
    if config is None or options.adapter == "merge":
        return source
    with loading(options, "adapter"):
        weights = load_peft_weights(options.name_or_path, device="cpu", revision=options.revision)
    tensors = sorted({key for key in weights if ".lm_head.lora_" in key or "lora_embedding" in key})
    settings = {
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "target_parameters": bool(config.target_parameters),
    }
    if options.adapter == "stack":
        settings |= {
            "use_dora": config.use_dora or (lora is not None and lora.use_dora),
            "modules_to_save": bool(config.modules_to_save),
            "trainable_token_indices": bool(config.trainable_token_indices),
        }
        matrices = (".lora_A.weight", ".lora_B.weight")
        tensors += [k for k, w in weights.items() if not k.endswith(matrices) or w.dim() != 2]
    unsupported = [name for name, is_set in settings.items() if is_set] or tensors[:1]
    if unsupported:
        raise RecipeError(
            Problem(
                f"{options.adapter} does not support an adapter with {', '.join(unsupported)}",
                path="model.adapter",
                hint="write model.adapter: merge, or merge the adapter into its base first",
                code="MDL008",
            )
        )
    return source


def check_start_weights(options: Model, *, where: str = "model") -> list[str]:
    """Check that the weights of a model, and of the adapters on it, are complete and fit.

    No model is built, and only files of a few GiB are read beyond their headers. Raises
    RecipeError; returns warnings.
    """
    source = resolve_model(options, where=where)
    if source.adapter is None:
        return check_weights(options, where, values=True)
    warnings = check_start_weights(source.base, where=where)
    _check_adapter(options, source.adapter, source.base, where)
    return warnings


def _check_adapter(options: Model, config: LoraConfig, base: Model, where: str) -> None:
    """Compare the file of an adapter with its config and its base. Raises RecipeError."""
    folder = _adapter_folder(options)
    if folder is None:
        return
    weights = read_adapter_files(folder, where)
    model = empty_model(load_base_config(base, where=where), base, where)
    with loading(options, "adapter", where):
        check_adapter_files(model, config, weights, where)
    check_values(weights, where)


def _adapter_folder(options: Model) -> Path | None:
    """Return the folder of an adapter, or its snapshot in the cache."""
    path = Path(options.name_or_path).expanduser()
    return path if path.is_dir() else snapshot(options.name_or_path, "model", options.revision)


def load_base_config(options: Model, *, where: str = "model") -> PretrainedConfig:
    """Load the config of the base model under any adapters. Raises RecipeError."""
    return load_config(resolve_base(options, where=where), where)


def load_policy(
    options: Model, dtype: torch.dtype, seed: int, *, where: str = "model"
) -> PreTrainedModel | PeftModel:
    """Load the starting policy on the CPU: a full model, or a PeftModel that continues."""
    source = resolve_model(options, where=where)
    if source.adapter is None:
        return load_model(options, dtype, seed, where)
    _check_adapter(options, source.adapter, source.base, where)
    # Sum in float32 and round once: an adapter's small values would be lost.
    base_dtype = torch.float32 if options.adapter != "continue" else dtype
    policy = _on_base(options, source, base_dtype, seed, where)
    if options.adapter == "continue":
        return policy
    return merged(policy, dtype)


def load_unmerged(options: Model, dtype: torch.dtype, *, where: str = "model") -> PeftModel:
    """Load an adapter on its base, which may itself be merged from a base and an adapter.

    Raises RecipeError, also for a folder that is not an adapter.
    """
    source = resolve_model(options, where=where)
    if source.adapter is None:
        raise RecipeError(
            f"{options.name_or_path} is not an adapter",
            code="MDL007",
            place=where,
            hint="it needs no merging; name a run that trained an adapter, or an adapter's folder",
        )
    _check_adapter(options, source.adapter, source.base, where)
    return _on_base(options, source, dtype, 0, where)


def merged(policy: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with the adapter added to its weights, which takes the adapter apart."""
    model: PreTrainedModel = policy.merge_and_unload().to(dtype)
    model.config.dtype = dtype
    # The adapter has frozen the weights.
    return model.requires_grad_(True)


def _on_base(
    options: Model, source: ModelSource, dtype: torch.dtype, seed: int, where: str
) -> PeftModel:
    assert source.adapter is not None
    base = load_policy(source.base, dtype, seed, where=where)
    with loading(options, "adapter", where):
        policy = PeftModel.from_pretrained(
            base,
            options.name_or_path,
            revision=options.revision,
            is_trainable=options.adapter == "continue",
            config=source.adapter,
        )
        if source.adapter.modules_to_save and options.dtype != "bfloat16":
            weights = load_peft_weights(
                options.name_or_path, device="cpu", revision=options.revision
            )
            restore_whole_layers(policy, weights)
    return policy


def with_merged_adapter(options: Model) -> Model:
    """Return the section for inference: an adapter without model.adapter is merged."""
    if options.adapter is not None or not is_adapter(options.name_or_path, options.revision):
        return options
    return options.model_copy(update={"adapter": "merge", "quantization": None})


def reference_model(reference: Reference, policy: Model) -> Model | None:
    """Return the named reference as a model section; None for the starting policy."""
    if reference.name_or_path is None:
        return None
    named = {
        "name_or_path": reference.name_or_path,
        "revision": reference.revision,
        "tokenizer": None,
        "tokenizer_revision": None,
        "adapter": None,
        "init": "pretrained",
    }
    return with_merged_adapter(policy.model_copy(update=named))
