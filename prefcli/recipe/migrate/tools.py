"""The tools whose configs can be migrated: their files, methods and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from prefcli.errors import Problem
from prefcli.methods import METHODS, Kto, Sft
from prefcli.methods.dpo import PairLoss
from prefcli.recipe.migrate import keys
from prefcli.recipe.migrate.rules import RuleTable, is_on
from prefcli.recipe.source_map import Key, Places, dotted

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """A tool: its name, the rules for its keys, and its defaults."""

    name: str
    recognises: Callable[[Data], bool]
    """Whether a file's data belongs to the tool."""
    defaults: Callable[[str, Data], Data]
    """Returns the defaults for a method and a file's data, by trl's names."""
    candidate_methods: Callable[[Data], set[str]]
    """Returns the methods that a file's keys allow; empty if prefcli does not have the method."""
    required: Callable[[str, Data], tuple[str, ...]] = lambda method, data: ()
    """Returns keys without a default that the tool needs for a method."""
    method_key: str | None = None
    """The key that names the method, by trl's name."""
    has_own_names: bool = False
    """Whether it reads only its own name of a setting, where that differs from trl's."""

    @property
    def table(self) -> RuleTable:
        """The rules of its keys, by trl's names."""
        return keys.TABLES[self.name]

    def trl_names(self) -> dict[str, str]:
        """Return trl's name of each key that the tool has another name for."""
        return dict(word.split("=") for word in keys.NAMES[self.name].split())


def by_trl_names(
    tool: Tool, entries: Mapping[Key, Any], places: Places
) -> tuple[dict[str, Any], dict[str, Key], list[Problem]]:
    """Return a file's values by trl's names, their paths in the file, and keys that collide."""
    names = tool.trl_names()
    data: dict[str, Any] = {}
    paths: dict[str, Key] = {}
    problems = []
    for path, value in entries.items():
        name = names.get(dotted(path), str(path[-1]))
        if tool.has_own_names and dotted(path) not in names and name in names.values():
            name = dotted(("unknown", *path))
        if data.get(name) is None:
            data[name], paths[name] = value, path
        elif value is not None and value != data[name]:
            first = dotted(paths[name])
            problems.append(
                Problem(
                    f"is {value}, and {first}, another name of the same setting, is {data[name]}",
                    places.key(path),
                    dotted(path),
                    f"remove {dotted(path)} or {first}",
                    code="RCP168",
                )
            )
    return data, paths, problems


def find_method(
    tool: Tool, data: Data, places: Places, paths: Mapping[str, Key], requested: str | None
) -> str | Problem:
    """Return the method of a file. `requested` must not contradict the file."""
    methods = tool.candidate_methods(data)
    key = paths.get(tool.method_key or "")
    place = places.value(key) if key else f"{places.source}:1:1"
    path = dotted(key) if key else None
    if requested is not None:
        # dpo has an ipo loss as well. If the keys contradict each other, each is checked against
        # the requested method.
        is_dpo_loss = requested == "dpo" and methods == {"ipo"}
        if requested in methods or is_dpo_loss or not (methods or tool.method_key):
            return requested
        trains = " or ".join(sorted(methods)) if methods else "no method that prefcli has"
        return Problem(
            f"--method {requested}, but the file's keys are for {trains}", place, code="RCP153"
        )
    if tool.method_key is None and (named := _method_in_path(Path(places.source))):
        methods = methods if methods == {"ipo"} and named == "dpo" else methods & {named}
    if tool.method_key is None and len(methods) > 1 and paths.get("max_length") == (_SFT_KEY,):
        methods &= {"sft"}
    if len(methods) == 1:
        return next(iter(methods))
    if tool.method_key and not methods:
        hint = f"prefcli trains {', '.join(METHODS)}"
        return Problem("prefcli does not have this method", place, path, hint, code="RCP154")
    names = [method for method in METHODS if method in methods]
    reason = f"the keys fit {', '.join(names)}" if names else "the keys contradict each other"
    return Problem(
        f"the method is not clear: {reason}",
        place,
        hint=f"pass --method {'|'.join(names or METHODS)}",
        code="RCP152",
    )


_SFT_KEY = "max_seq_length"
"""The name that trl's SFT had for max_length."""


def _method_in_path(path: Path) -> str | None:
    """Return the method in the file's name, or in the name of the nearest folder that has one."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        methods = set(re.split(r"[^a-z0-9]+", part.lower())) & METHODS.keys()
        if len(methods) == 1:
            return methods.pop()
    return None


_ONLY = {
    "dpo": ("loss_weights", "rpo_alpha", "f_divergence_type", "discopop_tau"),
    "simpo": ("simpo_gamma", "gamma_beta_ratio"),
    "sft": ("dataset_text_field", "dataset_kwargs", "eos_token"),
}
"""Keys of one method's config, in addition to those that are renamed to its section."""
_LOSSES = {
    method: get_args(options.model_fields["loss_type"].annotation)
    for method, options in (("kto", Kto), ("sft", Sft))
} | {"dpo": get_args(PairLoss)}


def _trl_methods(data: Data) -> set[str]:
    methods = set(METHODS)
    for key in data:
        if (rule := keys.TABLES["trl"].get(key)) is not None and rule.methods is not None:
            methods &= rule.methods
    for method, only in _ONLY.items():
        if any(data.get(key) is not None for key in only):
            methods &= {method}
    if is_on(data.get("packing")):
        methods &= {"sft"}
    given = data.get("loss_type")
    loss = given[0] if isinstance(given, list) and len(given) == 1 else given
    if loss == "alphapo" or (methods == {"cpo", "simpo"} and loss != "simpo"):
        return {"cpo"}  # only CPOConfig has cpo_alpha, and its default loss is sigmoid
    if loss is not None:
        methods -= {"cpo"}
    if loss in ("ipo", "simpo"):
        return methods & {loss}
    if isinstance(loss, list):
        return methods & {"dpo"}
    if isinstance(loss, str) and "gamma_beta_ratio" not in data:
        methods &= {method for method, losses in _LOSSES.items() if loss in losses}
    return methods


_TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
}
"""transformers' defaults that differ from prefcli's, or that a rule needs."""


def _trl_defaults(method: str, data: Data) -> Data:
    """Return trl 1.16's defaults that differ from prefcli's."""
    learning_rate = {"learning_rate": 2e-5 if method == "sft" else 1e-6}
    special: dict[str, Any] = {}
    if method == "kto":
        special = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    elif method == "cpo" and data.get("loss_type") == "alphapo":
        special = {"beta": 0.1, "simpo_gamma": 0.5}
    elif method == "simpo" and "gamma_beta_ratio" in data:
        special = {"beta": 2.0, "cpo_alpha": 0.0}
    elif method == "simpo":
        special = {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0}
    lora = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    return (
        _TRAINING_ARGUMENTS
        | learning_rate
        | special
        | (lora if is_on(data.get("use_peft")) else {})
    )


def _simpo_loss(method: str, data: Data) -> tuple[str, ...]:
    """Require the loss without which trl ignores simpo_gamma."""
    return ("loss_type",) if method == "simpo" and "gamma_beta_ratio" not in data else ()


_PREFERENCES = {"dpo", "ipo", "kto", "orpo", "simpo"}


def _axolotl_methods(data: Data) -> set[str]:
    rl = data.get("rl")
    if not rl:
        return {"sft"}
    is_ipo = rl == "dpo" and data.get("loss_type") == ["ipo"]
    return {"ipo"} if is_ipo else {str(rl)} & _PREFERENCES


def _axolotl_defaults(method: str, data: Data) -> Data:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1.0,
        "max_length": 512,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
    }
    if data.get("eval_steps"):
        defaults["eval_strategy"] = "steps"
    if method == "sft":
        defaults["train_on_prompt"] = False
    else:
        defaults["beta"] = 0.1
    if method == "kto":
        defaults |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    if method == "simpo":
        defaults["cpo_alpha"] = 1.0
    return defaults | ({"lora_dropout": 0.0} if data.get("use_peft") else {})


def _axolotl_required(method: str, data: Data) -> tuple[str, ...]:
    lora = ("lora_r", "lora_alpha") if data.get("use_peft") in ("lora", "qlora") else ()
    return ("learning_rate", *(("simpo_gamma",) if method == "simpo" else ()), *lora)


def _factory_methods(data: Data) -> set[str]:
    stage, loss = str(data.get("stage", "sft")), data.get("loss_type") or "sigmoid"
    if stage != "dpo":
        return {stage} & {"sft", "kto"}
    if loss in ("orpo", "simpo"):
        return {str(loss)}
    # With an SFT term (pref_ftx) ipo is one loss of two, which only dpo has.
    return {"ipo"} if loss == "ipo" and not data.get("rpo_alpha") else {"dpo"}


def _factory_defaults(method: str, data: Data) -> Data:
    defaults: dict[str, Any] = {"learning_rate": 5e-5, "max_length": 2048, "use_peft": "lora"}
    if method == "sft":
        defaults["train_on_prompt"] = False
    else:
        defaults["beta"] = 0.1
    if method == "simpo":
        defaults["simpo_gamma"] = 0.5
    if method == "kto":
        defaults |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    if (data.get("use_peft") or "lora") == "lora":
        rank = data.get("lora_r") or 8
        defaults |= {"lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all"}
        defaults["lora_alpha"] = 2 * rank if isinstance(rank, int) else None
    return _TRAINING_ARGUMENTS | defaults


def _oumi_methods(data: Data) -> set[str]:
    trainer = str(data.get("trainer_type")).lower()
    if trainer == "trl_dpo" and data.get("loss_type") in ("ipo", ["ipo"]):
        return {"ipo"}
    return {"trl_sft": {"sft"}, "trl_dpo": {"dpo"}, "trl_kto": {"kto"}}.get(trainer, set())


def _oumi_defaults(method: str, data: Data) -> Data:
    defaults = _TRAINING_ARGUMENTS | {"learning_rate": 5e-5, "dtype": "float32"}
    defaults["mixed_precision_dtype"] = "none"
    if is_on(data.get("use_peft")):
        defaults |= {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
        if is_on(data.get("q_lora")):
            defaults["quantization_bit"] = 4
    if method == "kto":
        defaults |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return defaults


def _section(data: Data, name: str) -> Data:
    section = data.get(name)
    return section if isinstance(section, Mapping) else {}


TOOLS: tuple[Tool, ...] = (
    Tool(
        "oumi",
        lambda data: (
            "model_name" in _section(data, "model") or "trainer_type" in _section(data, "training")
        ),
        _oumi_defaults,
        _oumi_methods,
        method_key="trainer_type",
        has_own_names=True,
    ),
    Tool("W&B", lambda data: "_wandb" in data, _trl_defaults, _trl_methods, _simpo_loss),
    Tool(
        "axolotl",
        lambda data: (
            "base_model" in data
            and bool({"datasets", "micro_batch_size", "sequence_len", "adapter"} & data.keys())
        ),
        _axolotl_defaults,
        _axolotl_methods,
        _axolotl_required,
        method_key="rl",
        has_own_names=True,
    ),
    Tool(
        "LLaMA-Factory",
        lambda data: bool(
            {"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta"} & data.keys()
        ),
        _factory_defaults,
        _factory_methods,
        method_key="stage",
    ),
    Tool(
        "alignment-handbook",
        lambda data: bool({"dataset_mixture", "dataset_mixer", "chat_template"} & data.keys()),
        _trl_defaults,
        _trl_methods,
        _simpo_loss,
    ),
    Tool(
        "trl",
        lambda data: bool({"model_name_or_path", "dataset_name"} & data.keys()),
        _trl_defaults,
        _trl_methods,
        _simpo_loss,
    ),
)
"""The tools, in the order in which a file is compared with them."""


def other_tool(data: Data) -> str | None:
    """Return a sentence about a tool whose files are recognised but not migrated."""
    for is_its, sentence in _OTHERS:
        if is_its(data):
            return sentence
    return None


def _has_component(data: Any) -> bool:
    if isinstance(data, Mapping):
        return "_component_" in data or any(map(_has_component, data.values()))
    return False


_OTHERS: tuple[tuple[Callable[[Data], bool], str], ...] = (
    (
        _has_component,
        "this is a config of torchtune, which names Python functions instead of settings",
    ),
    (
        lambda data: bool({"rlhf_type", "tuner_type", "train_type"} & data.keys()),
        "this is a config of ms-swift, whose keys prefcli migrate does not know",
    ),
    (
        lambda data: (
            data.get("use_gradient_checkpointing") == "unsloth"
            or bool({"finetune_language_layers", "training_type"} & data.keys())
        ),
        "this is a config of unsloth's studio; unsloth itself trains from Python with trl's names",
    ),
    (
        lambda data: (
            bool({"reward_pretrain", "micro_train_batch_size"} & data.keys())
            or ("pretrain" in data and "train_batch_size" in data)
        ),
        "these are the arguments of OpenRLHF, whose keys prefcli migrate does not know",
    ),
    (
        lambda data: bool(
            {"dataset_mixer_list", "dataset_mixer_list_splits", "with_tracking"} & data.keys()
        ),
        "this is a config of open-instruct, which has its own trainer and keys",
    ),
)
