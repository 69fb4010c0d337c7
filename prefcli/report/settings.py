"""The settings that make a run differ from the defaults, as dotted keys with their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefcli.report.run_data import Run, as_dict

MAIN_SETTINGS = (
    "training.global_batch_size",
    "training.num_train_epochs",
    "training.max_steps",
    "training.lr_scheduler_type",
    "training.warmup_ratio",
    "training.warmup_steps",
    "training.optim",
    "training.weight_decay",
    "data.max_length",
    "model.dtype",
    "model.quantization",
    "sft_mix.fraction",
    "sft_mix.weight",
    "seed",
)
"""Settings that every account of a run lists, besides all of the method's section and of lora."""

_ELSEWHERE = ("output_dir", "expected", "anchor")
"""Settings that the pages show in another place."""


def main_settings(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield the settings of the method and of lora, and the main ones of training."""
    effective = as_dict(run.record.get("effective"))
    rate = effective.get("learning_rate", run.recipe_value("training.learning_rate"))
    for section in (run.method, "lora"):
        for key, value in as_dict(run.recipe_value(section)).items():
            if value is not None:
                yield f"{section}.{key}", value
    if rate is not None:
        yield "training.learning_rate", f"{rate:g}" if isinstance(rate, float) else rate
    for path in MAIN_SETTINGS:
        if run.recipe_value(path) is not None:
            yield path, run.recipe_value(path)


def own_settings(run: Run) -> dict[str, str]:
    """Return what the recipe of a run sets; for runs of earlier versions the main settings."""
    written = as_dict(run.record.get("settings"))
    shown = {key: value for key, value in written.items() if key not in _ELSEWHERE}
    if not shown:
        start = run.recipe_value("model.name_or_path")
        first = {} if start is None else {"model.name_or_path": str(start)}
        return first | {key: text(value) for key, value in main_settings(run)}
    return dict(settings_of(shown))


def settings_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values in nested data by their dotted paths: data.train.path, data.train[1].path.

    The only item of a list has no index, as in a recipe.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from settings_of(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for at, inner in enumerate(value):
            yield from settings_of(inner, path if len(value) == 1 else f"{path}[{at}]")
    elif value is not None:
        yield path, text(value)


def text(value: Any) -> str:
    """Return a setting's value as it is written in YAML, in most cases."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(text, value)) if isinstance(value, list) else str(value)
