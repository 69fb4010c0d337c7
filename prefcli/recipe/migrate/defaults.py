"""The tools' defaults of keys that a file does not have, by trl's names, where prefcli's differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefcli.methods import METHODS
from prefcli.recipe.migrate.rules import is_on

Data = Mapping[str, Any]

_TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
}
_KTO = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
_TRL: dict[str, dict[str, Any]] = {
    "all": _TRAINING_ARGUMENTS | {"learning_rate": 1e-6},
    "sft": {"learning_rate": 2e-5},
    "reward": {"learning_rate": 1e-4},
    "kto": _KTO,
    "rloo": {"beta": 0.05, "num_generations": 2, "max_completion_length": 512},
    "simpo": {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0},
    "simpo of its authors": {"beta": 2.0, "simpo_gamma": None, "cpo_alpha": 0.0},
    "alphapo": {"beta": 0.1, "simpo_gamma": 0.5},
    "lora": {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "trl": _TRL,
    "alignment-handbook": _TRL,
    "W&B": _TRL,
    "axolotl": {
        "all": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1.0,
            "max_length": 512,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.03,
        },
        "sft": {"train_on_prompt": False},
        "preference": {"beta": 0.1},
        "kto": _KTO,
        "simpo": {"cpo_alpha": 1.0},
        "lora": {"lora_dropout": 0.0},
        "eval_steps": {"eval_strategy": "steps"},
    },
    "LLaMA-Factory": {
        "all": _TRAINING_ARGUMENTS
        | {"learning_rate": 5e-5, "max_length": 2048, "use_peft": "lora"},
        "sft": {"train_on_prompt": False},
        "preference": {"beta": 0.1},
        "kto": _KTO,
        "simpo": {"simpo_gamma": 0.5},
        "lora": {"lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all"},
    },
    "oumi": {
        "all": _TRAINING_ARGUMENTS
        | {"learning_rate": 5e-5, "dtype": "float32", "mixed_precision_dtype": "none"},
        "kto": _KTO,
        "lora": {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
        "q_lora": {"quantization_bit": 4},
    },
}
"""By tool, and by what they depend on; later entries replace earlier ones."""

_TRL_REQUIRED: dict[str, tuple[str, ...]] = {
    "simpo": ("loss_type",)  # without it trl ignores simpo_gamma
}
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "trl": _TRL_REQUIRED,
    "alignment-handbook": _TRL_REQUIRED,
    "W&B": _TRL_REQUIRED,
    "axolotl": {
        "all": ("learning_rate",),
        "simpo": ("simpo_gamma",),
        "lora": ("lora_r", "lora_alpha"),
    },
}
"""Keys without a default that a tool needs, by what they depend on."""


def _conditions(tool: str, method: str, data: Data) -> Iterator[str]:
    """Yield the entries of the tables that apply to a file."""
    yield "all"
    if method == "sft":
        yield "sft"
    elif METHODS[method].strength_key is not None:
        yield "preference"
    is_authors = method == "simpo" and "gamma_beta_ratio" in data
    yield "simpo of its authors" if is_authors else method
    if method == "cpo" and data.get("loss_type") == "alphapo":
        yield "alphapo"
    if (data.get("use_peft") or DEFAULTS[tool]["all"].get("use_peft")) in (True, "lora", "qlora"):
        yield "lora"
    yield from (key for key in ("eval_steps", "q_lora") if is_on(data.get(key)))


def defaults(tool: str, method: str, data: Data) -> dict[str, Any]:
    """Return the defaults of a file's missing keys."""
    values: dict[str, Any] = {}
    for condition in _conditions(tool, method, data):
        values |= DEFAULTS[tool].get(condition, {})
    if tool == "LLaMA-Factory" and "lora_r" in values:
        rank = data.get("lora_r") or values["lora_r"]
        values["lora_alpha"] = 2 * rank if isinstance(rank, int) else None
    return {key: value for key, value in values.items() if value is not None}


def required(tool: str, method: str, data: Data) -> list[str]:
    """Return the keys that a file of the tool must have."""
    conditions = _conditions(tool, method, data)
    return [key for c in conditions for key in _REQUIRED.get(tool, {}).get(c, ())]
