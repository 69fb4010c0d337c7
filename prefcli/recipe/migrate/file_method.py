"""The method of a file: named by a key, or found by the keys that only one method has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from prefcli.errors import Problem
from prefcli.methods import METHODS, Kto, Sft
from prefcli.methods.dpo import PairLoss
from prefcli.recipe.migrate.keys import TABLES
from prefcli.recipe.migrate.rules import is_on
from prefcli.recipe.migrate.tools import Tool
from prefcli.recipe.source_map import Key, Places, dotted

Data = Mapping[str, Any]


def find_method(
    tool: Tool, data: Data, places: Places, paths: Mapping[str, Key], requested: str | None
) -> str | Problem:
    """Return the method of a file. `requested` must not contradict the file."""
    methods = possible_methods(tool, data)
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
    rlhf = paths.get("reward_funcs") or paths.get("num_generations")
    if rlhf and "rloo" in methods and _method_in_path(Path(places.source)) != "rloo":
        message = "is of GRPO, which prefcli does not train, or of RLOO"
        hint = "pass --method rloo if it is of RLOO"
        return Problem(message, places.key(rlhf), dotted(rlhf), hint, code="RCP152")
    if tool.method_key is None and (named := _method_in_path(Path(places.source))):
        methods = methods if methods == {"ipo"} and named == "dpo" else methods & {named}
    if tool.method_key is None and len(methods) > 1 and paths.get("max_length") == (_SFT_KEY,):
        methods &= {"sft"}
    if len(methods) == 1:
        return next(iter(methods))
    if tool.method_key and not methods:
        hint = f"prefcli trains {', '.join(METHODS)}"
        return Problem("prefcli does not have this method", place, path, hint, code="RCP154")
    loss = paths.get("loss_type")
    if not methods and loss and possible_methods(tool, {**data, "loss_type": None}):
        message = f"no method of prefcli has the loss {data['loss_type']}"
        return Problem(message, places.value(loss), dotted(loss), code="RCP154")
    if rlhf:
        message = "is of GRPO, which prefcli does not train"
        return Problem(message, places.key(rlhf), dotted(rlhf), code="RCP154")
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


def possible_methods(tool: Tool, data: Data) -> set[str]:
    """Return the methods that a file's keys allow; none if prefcli does not have the method."""
    loss = data.get("loss_type")
    loss = loss[0] if isinstance(loss, list) and len(loss) == 1 else loss
    if tool.name == "axolotl":
        kind = "reward" if is_on(data.get("reward_model")) else str(data.get("rl") or "sft")
        return {"ipo"} if (kind, loss) == ("dpo", "ipo") else {kind} & (METHODS.keys() - {"cpo"})
    if tool.name == "LLaMA-Factory":
        stage = str(data.get("stage", "sft"))
        kind = "reward" if stage == "rm" else stage
        # With an SFT term (pref_ftx) ipo is one loss of two, which only dpo has.
        is_method = loss in ("orpo", "simpo") or (loss == "ipo" and not data.get("rpo_alpha"))
        return (
            {str(loss)} if kind == "dpo" and is_method else {kind} & {"sft", "dpo", "kto", "reward"}
        )
    if tool.name == "oumi":
        kind = str(data.get("trainer_type")).lower().removeprefix("trl_")
        return {"ipo"} if (kind, loss) == ("dpo", "ipo") else {kind} & {"sft", "dpo", "kto"}
    return _trl_methods(data, loss)


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


def _trl_methods(data: Data, loss: Any) -> set[str]:
    methods = set(METHODS)
    for key in data:
        if (rule := TABLES["trl"].get(key)) is not None and rule.methods is not None:
            methods &= rule.methods
    for method, only in _ONLY.items():
        if any(data.get(key) is not None for key in only):
            methods &= {method}
    if is_on(data.get("packing")):
        methods &= {"sft"}
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
