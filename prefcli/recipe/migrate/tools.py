"""The tools whose configs can be migrated, and those that are recognised only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.migrate.defaults import defaults, required
from prefcli.recipe.migrate.keys import TABLES
from prefcli.recipe.migrate.names import TRL_NAMES
from prefcli.recipe.migrate.rules import RuleTable
from prefcli.recipe.source_map import Key, Places, dotted

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """A tool: its name, and how its files are recognised and read."""

    name: str
    marks: str
    """Keys that no other tool has; one is enough."""
    needs: str = ""
    """A key that a file must have as well."""
    method_key: str | None = None
    """The key that names the method, by trl's name."""
    has_own_names: bool = False
    """Whether it reads only its own name of a setting, where that differs from trl's."""

    def recognises(self, data: Data) -> bool:
        """Return whether a file belongs to the tool."""
        return has_any(data, self.marks) and (not self.needs or self.needs in data)

    @property
    def table(self) -> RuleTable:
        """The rules of its keys, by trl's names."""
        return TABLES[self.name]

    @property
    def trl_names(self) -> dict[str, str]:
        """trl's name of each key that the tool has another name for."""
        return TRL_NAMES[self.name]

    def defaults(self, method: str, data: Data) -> dict[str, Any]:
        """Return its defaults of keys that a file does not have, by trl's names."""
        return defaults(self.name, method, data)

    def required(self, method: str, data: Data) -> list[str]:
        """Return the keys without a default that it needs."""
        return required(self.name, method, data)


def has_any(data: Data, keys: str) -> bool:
    """Return whether a file has one of these keys, which may be dotted."""
    for key in keys.split():
        section, _, inner = key.rpartition(".")
        values = data.get(section) if section else data
        if isinstance(values, Mapping) and inner in values:
            return True
    return False


TOOLS = (
    Tool(
        "oumi",
        "model.model_name training.trainer_type",
        method_key="trainer_type",
        has_own_names=True,
    ),
    Tool("W&B", "_wandb"),
    Tool(
        "axolotl",
        "datasets micro_batch_size sequence_len adapter",
        needs="base_model",
        method_key="rl",
        has_own_names=True,
    ),
    Tool(
        "LLaMA-Factory",
        "stage finetuning_type cutoff_len pref_loss pref_beta",
        method_key="stage",
    ),
    Tool("alignment-handbook", "dataset_mixture dataset_mixer chat_template"),
    Tool("trl", "model_name_or_path dataset_name"),
)
"""The tools, in the order in which a file is compared with them."""

_OTHERS = {
    "rlhf_type tuner_type train_type": (
        "this is a config of ms-swift, whose keys prefcli migrate does not know"
    ),
    "finetune_language_layers training_type": (
        "this is a config of unsloth's studio; unsloth itself trains from Python with trl's names"
    ),
    "reward_pretrain micro_train_batch_size": (
        "these are the arguments of OpenRLHF, whose keys prefcli migrate does not know"
    ),
    "model_class kernel_config sample_backend": (
        "this is a config of LLaMA-Factory's version 1, whose keys prefcli migrate does not know"
    ),
    "dataset_mixer_list dataset_mixer_list_splits with_tracking": (
        "this is a config of open-instruct, which has its own trainer and keys"
    ),
}
"""Keys of tools whose files are recognised but not migrated, with a sentence about the tool."""


def other_tool(data: Data) -> str | None:
    """Return a sentence about a tool whose files are recognised but not migrated."""
    if _has_component(data):
        return "this is a config of torchtune, which names Python functions instead of settings"
    return next((sentence for keys, sentence in _OTHERS.items() if has_any(data, keys)), None)


def _has_component(data: Any) -> bool:
    if isinstance(data, Mapping):
        return "_component_" in data or any(map(_has_component, data.values()))
    return False


def by_trl_names(
    tool: Tool, entries: Mapping[Key, Any], places: Places
) -> tuple[dict[str, Any], dict[str, Key], list[Problem]]:
    """Return a file's values by trl's names, their paths in the file, and keys that collide."""
    names = tool.trl_names
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
