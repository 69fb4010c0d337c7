"""Settings that every tool spreads over several keys, under whatever names."""

from __future__ import annotations

from typing import Any, get_args

from prefcli.recipe.migrate.base import Draft, MultiKeyRule, is_on, words
from prefcli.recipe.sections import Logging, Training

_TRACKERS = get_args(get_args(Logging.model_fields["report_to"].annotation)[0])
Listed = list[tuple[dict[str, Any], tuple[str | int, ...]]]
"""Data sources, each with the place inside its key that it came from."""

_OFF = "prefcli evaluates exactly when data.eval is given, and here it is not"
_SAVES = "prefcli saves a checkpoint to resume from every training.save_steps"


def batch(per_device: str, accumulation: str) -> MultiKeyRule:
    """Rows a device, accumulation and the number of devices, which stands in no file."""

    def translate(draft: Draft) -> None:
        rows, steps = draft.value(per_device), draft.value(accumulation)
        draft.settled |= {per_device, accumulation}
        for key, value in ((per_device, rows), (accumulation, steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                draft.refuse(key, f"{value!r} is not a whole number of 1 or more")
                return
        if draft.devices is None:
            key = accumulation if accumulation in draft.data else per_device
            draft.refuse(
                key,
                "the number of devices is not in the file, and global_batch_size depends on it",
                f"pass --devices N (per-device {rows} x accumulation {steps} x N)",
            )
            return
        total = rows * steps * draft.devices
        draft.put("training.global_batch_size", total, accumulation)
        draft.put("training.per_device_train_batch_size", rows, per_device)
        draft.remark(
            f"global_batch_size {total} is per-device {rows} x accumulation {steps} x "
            f"{draft.devices} devices (--devices)"
        )

    return MultiKeyRule(
        translate, "training.global_batch_size", "training.per_device_train_batch_size"
    )


def warm_up(scheduler: str) -> MultiKeyRule:
    """transformers: warmup_steps above 0 go before warmup_ratio; neither is none at all."""

    def translate(draft: Draft) -> None:
        ratio, steps = draft.given("warmup_ratio"), draft.given("warmup_steps")
        if draft.value(scheduler) == "constant":
            for key in ("warmup_ratio", "warmup_steps"):
                draft.drop(key, f"{scheduler} constant has no warm-up")
        elif steps:
            draft.drop("warmup_ratio", "warmup_steps goes before it")
            # transformers 5 reads steps below 1 as a share of all.
            share = isinstance(steps, float) and steps < 1
            draft.put(f"training.warmup_{'ratio' if share else 'steps'}", steps, "warmup_steps")
        else:
            draft.drop("warmup_steps", "it is off")
            default = draft.defaults.get("warmup_ratio", 0.0)
            draft.put("training.warmup_ratio", default if ratio is None else ratio, "warmup_ratio")

    return MultiKeyRule(translate, "training.warmup_ratio", "training.warmup_steps")


def put_min_lr(draft: Draft, ratio: Any, key: str, *inside: str | int, scheduler: str) -> None:
    """A cosine that ends above zero, at this share of the learning rate."""
    draft.put("training.lr_scheduler_type", "cosine_with_min_lr", scheduler)
    draft.put("training.min_lr_ratio", ratio, key, *inside)


def evaluation(per_device: str, *strategies: str) -> MultiKeyRule:
    """When to evaluate. Comes after the data: without data.eval nothing here has an effect."""

    def translate(draft: Draft) -> None:
        if "data.eval" not in draft.values:
            for key in (*strategies, "eval_steps", per_device):
                draft.drop(key, _OFF)
            return
        strategy, steps = _strategy(draft, strategies), draft.given("eval_steps")
        for key in strategies:
            draft.drop(key, "data.eval and training.eval_steps say it")
        if draft.given(per_device) is not None:
            draft.put("training.per_device_eval_batch_size", draft.given(per_device), per_device)
        if strategy == "steps" and isinstance(steps, int | None):
            key = "eval_steps" if steps else "logging_steps"
            if every := steps or draft.value("logging_steps"):
                draft.put("training.eval_steps", every, key)
            return
        draft.drop("eval_steps", "prefcli counts whole steps")
        draft.remark(
            "evaluation: before the first step and after the last; the steps of "
            f"{'an epoch' if strategy == 'epoch' else 'a share of the run'} are not in the file, "
            "so write training.eval_steps for more"
        )

    return MultiKeyRule(translate, "training.eval_steps", "training.per_device_eval_batch_size")


def evaluates(draft: Draft, *strategies: str) -> bool:
    return _strategy(draft, strategies) != "no"


def _strategy(draft: Draft, keys: tuple[str, ...]) -> str:
    value = next((draft.given(key) for key in keys if key in draft.data), None)
    return str(value) if is_on(value) else "no"


def saving() -> MultiKeyRule:
    def translate(draft: Draft) -> None:
        strategy, steps = draft.given("save_strategy"), draft.given("save_steps")
        if strategy not in (None, "steps"):
            draft.drop("save_strategy", _SAVES)
            draft.drop("save_steps", f"save_strategy {strategy} does not read it")
        elif isinstance(steps, int | None) and steps != 0:
            draft.drop("save_strategy", _SAVES)
            if steps is not None:
                draft.put("training.save_steps", steps, "save_steps")
            return
        else:
            draft.drop("save_strategy", _SAVES)
            draft.drop("save_steps", "prefcli counts whole steps")
        every = Training.model_fields["save_steps"].default
        draft.remark(
            f"checkpoints to resume from: every {every} steps, prefcli's default; write "
            "training.save_steps for another number"
        )

    return MultiKeyRule(translate, "training.save_steps")


def trackers() -> MultiKeyRule:
    def translate(draft: Draft) -> None:
        named = words(draft.given("report_to") or [])
        if named is None:
            draft.refuse("report_to", "is neither a tracker's name nor a list of names")
            return
        if named == ["all"]:
            draft.refuse("report_to", "'all' depends on the machine", "name the trackers")
            return
        named = [tracker for tracker in named if tracker != "none"]
        if unknown := [tracker for tracker in named if tracker not in _TRACKERS]:
            draft.refuse(
                "report_to",
                f"prefcli does not report to {', '.join(unknown)}",
                f"there are {', '.join(_TRACKERS)}; metrics.jsonl is always written",
            )
        elif named:
            draft.put("logging.report_to", named, "report_to")
            if draft.given("run_name") is not None:
                draft.put("logging.run_name", draft.given("run_name"), "run_name")
        else:
            draft.drop("report_to", "no tracker; metrics.jsonl is always written")
        if "logging.run_name" not in draft.values:
            draft.drop("run_name", "no tracker reads it")

    return MultiKeyRule(translate, "logging.report_to", "logging.run_name")


def put_lora(draft: Draft, names: dict[str, str]) -> None:
    """Key: path of each setting of the adapter, given or assumed."""
    for key, path in names.items():
        if (value := draft.value(key)) is not None:
            draft.put(path, value, key)


def put_sources(draft: Draft, path: str, sources: Listed, key: str) -> None:
    """data.train or data.eval; each source with the place inside `key` that it came from."""
    if not sources:
        return
    values = [
        {key: value for key, value in source.items() if (key, value) != ("fraction", 1.0)}
        for source, _ in sources
    ]
    draft.put(path, values[0] if len(values) == 1 else values, key, *_common(sources))
    if len(values) > 1:
        for i, (_, inside) in enumerate(sources):
            draft.origins[f"{path}[{i}]"] = (key, *inside)
    if any("fraction" in source for source in values):
        draft.remark(
            f"{path}: the rows of a fraction are drawn with prefcli's seed, so they are others "
            f"than {draft.tool}'s"
        )


def _common(sources: Listed) -> tuple[str | int, ...]:
    return sources[0][1] if len(sources) == 1 else ()
