"""A first recipe for a model and data of one's own, with a comment at each key."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import Any

from prefcli.methods import METHODS
from prefcli.recipe.catalog import SCHEMA_LINE
from prefcli.recipe.context_length import context_of
from prefcli.recipe.reference import recipe_keys
from prefcli.recipe.yaml_writer import recipe_text

_COLUMN = 40
_WIDTH = 110
_EVAL_SHARE = 0.05


def starter_recipe(
    method: str, model: str, train: str, *, held_out: str | None, lora: bool, output_dir: str
) -> str:
    """Return the text of a recipe with the settings that are changed most.

    method: a key of METHODS. held_out: a data file; None to draw rows from `train`.
    """
    chosen = METHODS[method]
    values: dict[str, Any] = {
        "output_dir": output_dir,
        "model.name_or_path": model,
        "data.train": {"path": train},
        "data.eval": {"path": held_out} if held_out else {"from_train": _EVAL_SHARE},
        "data.max_length": min(1024, context_of(model) or 1024),
        "training.num_train_epochs": 1,
        "training.global_batch_size": 32,
        "training.learning_rate": chosen.learning_rates.lora
        if lora
        else chosen.learning_rates.full,
    }
    if lora:
        values |= {"lora.rank": 16, "lora.alpha": 32}
    strength = chosen.strength_key
    if strength is None:
        values[method] = {}
    else:
        values[f"{method}.{strength}"] = chosen().model_dump(by_alias=True)[strength]
    if chosen.needs_judge:
        values["judge.reward_model"] = {"name_or_path": "REWARD_MODEL"}
    if chosen.needs_sft:
        values["check_sft.max_perplexity"] = 10
    return f"{SCHEMA_LINE}\n{_commented(recipe_text(values))}"


def _commented(text: str) -> str:
    """Add the first sentence about each key: behind it if it fits in the line, else above it."""
    about = {key.path: key.description for key in recipe_keys()}
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        match = re.match(r"( *)([a-z_]+):", line)
        assert match is not None, line
        path[len(match[1]) // 2 :] = [match[2]]
        sentence = _first_sentence(about[".".join(path)])
        beside = f"{line:<{_COLUMN - 2}}  # {sentence}"
        if len(beside) <= _WIDTH:
            lines.append(beside)
        else:
            start = f"{match[1]}# "
            lines += wrap(sentence, _WIDTH, initial_indent=start, subsequent_indent=start)
            lines.append(line)
    return "\n".join(lines) + "\n"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!et al)(?<!, eq)[.;] ", text, maxsplit=1)[0].rstrip(".")
