"""Rules for settings that every tool spreads over several keys, under its own key names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from prefcli.metrics import metric
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import MultiKeyRule, is_on, word_list
from prefcli.recipe.paths import is_commit, is_local
from prefcli.recipe.sections import Logging, Training

_TRACKERS = get_args(get_args(Logging.model_fields["report_to"].annotation)[0])
SourceList = list[tuple[dict[str, Any], tuple[str | int, ...]]]
"""Data sources, each with its place inside the key that it came from."""

SAME_TRAINING = "it changes memory or speed, but not the result of training"
NO_EVAL = "prefcli evaluates if data.eval is given, and it is not"
SAVES = "prefcli saves a checkpoint every training.save_steps"
SAVED_AT_EVALS = "early stopping saves a checkpoint at each evaluation"
NEVER_STOP = 1_000_000
"""Patience of a run that keeps the best checkpoint but does not stop early."""


def batch_size(per_device: str, accumulation: str) -> MultiKeyRule:
    """Per-device batch size and accumulation, with the number of devices from --devices."""

    def translate(draft: Draft) -> None:
        rows, steps = draft.value(per_device), draft.value(accumulation)
        draft.handled |= {per_device, accumulation}
        for key, value in ((per_device, rows), (accumulation, steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                draft.refuse(key, f"{value!r} is not a whole number of 1 or more", code="RCP157")
                return
        if draft.devices is None:
            draft.refuse(
                accumulation if accumulation in draft.data else per_device,
                "global_batch_size depends on the number of devices, which the file does not have",
                code="RCP159",
                hint=f"pass --devices N (per-device {rows} x accumulation {steps} x N)",
            )
            return
        total = rows * steps * draft.devices
        draft.put("training.global_batch_size", total, accumulation)
        draft.put("training.per_device_train_batch_size", rows, per_device)
        draft.note(
            f"global_batch_size {total} is per-device {rows} x accumulation {steps} x "
            f"{draft.devices} devices (--devices)"
        )

    return MultiKeyRule(
        translate, "training.global_batch_size", "training.per_device_train_batch_size"
    )


def warmup(scheduler: str) -> MultiKeyRule:
    """Warmup as in transformers: warmup_steps above 0 overrides warmup_ratio, default 0."""

    def translate(draft: Draft) -> None:
        ratio, steps = draft.given("warmup_ratio"), draft.given("warmup_steps")
        if draft.value(scheduler) == "constant":
            for key in ("warmup_ratio", "warmup_steps"):
                draft.drop(key, f"{scheduler} constant has no warmup")
        elif steps:
            draft.drop("warmup_ratio", "warmup_steps overrides it")
            # transformers 5 reads warmup_steps below 1 as a ratio.
            is_ratio = isinstance(steps, float) and steps < 1
            draft.put(f"training.warmup_{'ratio' if is_ratio else 'steps'}", steps, "warmup_steps")
        else:
            draft.drop("warmup_steps", "it is off")
            default = draft.defaults.get("warmup_ratio", 0.0)
            draft.put("training.warmup_ratio", default if ratio is None else ratio, "warmup_ratio")

    return MultiKeyRule(translate, "training.warmup_ratio", "training.warmup_steps")


def put_min_lr(draft: Draft, ratio: Any, key: str, *inside: str | int, scheduler: str) -> None:
    """Write a cosine schedule that ends at this ratio of the learning rate."""
    draft.put("training.lr_scheduler_type", "cosine_with_min_lr", scheduler)
    draft.put("training.min_lr_ratio", ratio, key, *inside)


def evaluation(per_device: str, *strategy_keys: str, default_strategy: str = "no") -> MultiKeyRule:
    """The evaluation schedule. It follows the data in a table, as it needs data.eval.

    default_strategy: the strategy of a file that only has eval_steps.
    """

    def translate(draft: Draft) -> None:
        if "data.eval" not in draft.values:
            for key in (*strategy_keys, "eval_steps", per_device):
                draft.drop(key, NO_EVAL)
            return
        strategy, steps = _strategy(draft, strategy_keys), draft.given("eval_steps")
        if steps and not draft.data.keys() & {*strategy_keys}:
            strategy = default_strategy
        for key in strategy_keys:
            draft.drop(key, "data.eval and training.eval_steps replace it")
        if draft.given(per_device) is not None:
            draft.put("training.per_device_eval_batch_size", draft.given(per_device), per_device)
        if strategy == "steps" and isinstance(steps, int | None):
            key = "eval_steps" if steps else "logging_steps"
            if interval := steps or draft.value("logging_steps"):
                draft.put("training.eval_steps", interval, key)
            return
        draft.drop("eval_steps", "prefcli only takes a whole number of steps")
        unit = "an epoch" if strategy == "epoch" else "a share of the run"
        draft.note(
            f"evaluation runs before the first step and after the last, as the steps of {unit} are "
            "not in the file; write training.eval_steps for more"
        )

    return MultiKeyRule(translate, "training.eval_steps", "training.per_device_eval_batch_size")


def evaluates(draft: Draft, *strategy_keys: str) -> bool:
    """Return whether the file has an evaluation strategy other than `no`."""
    return _strategy(draft, strategy_keys) != "no"


def _strategy(draft: Draft, keys: tuple[str, ...]) -> str:
    value = next((draft.given(key) for key in keys if key in draft.data), None)
    return str(value) if is_on(value) else "no"


def early_stopping(*patience_keys: str) -> MultiKeyRule:
    """The best checkpoint as the model, and early stopping. It follows the evaluation."""
    keys = (
        *patience_keys,
        "load_best_model_at_end",
        "early_stopping_threshold",
        "metric_for_best_model",
        "greater_is_better",
    )

    def translate(draft: Draft) -> None:
        key = next((key for key in patience_keys if draft.given(key)), "load_best_model_at_end")
        if not is_on(draft.given(key)):
            for name in keys:
                draft.drop(name, "early stopping is off")
            return
        steps = draft.values.get("training.eval_steps")
        if steps is None:
            draft.handled |= {*keys}
            draft.refuse(
                key,
                "training.early_stopping needs data.eval and training.eval_steps, and the file "
                "gives no evaluation data or no number of steps",
                code="RCP163",
                hint="give evaluation data and eval_steps, or remove it",
            )
            return
        patience = draft.given(key) if key in patience_keys else NEVER_STOP
        draft.put("training.early_stopping.patience", patience, key)
        draft.put("training.save_steps", steps, key)
        if key in patience_keys:
            draft.drop("load_best_model_at_end", "training.early_stopping always does this")
        else:
            draft.note(
                "training.early_stopping.patience is so large that the run does not stop early, "
                "but its best checkpoint becomes the model, as with load_best_model_at_end"
            )
        if draft.given("early_stopping_threshold") is not None:
            threshold = draft.given("early_stopping_threshold")
            draft.put("training.early_stopping.threshold", threshold, "early_stopping_threshold")
        _put_metric(draft)

    return MultiKeyRule(
        translate,
        "training.early_stopping.patience",
        "training.early_stopping.threshold",
        "training.early_stopping.metric",
    )


def _put_metric(draft: Draft) -> None:
    name, greater = draft.given("metric_for_best_model"), draft.given("greater_is_better")
    name = "eval_loss" if name is None else str(name)
    name = name if name.startswith("eval_") else f"eval_{name}"
    if draft.given("metric_for_best_model") is not None:
        draft.put("training.early_stopping.metric", name, "metric_for_best_model")
    better = metric(name).better
    if greater is not None and better and is_on(greater) != (better == "higher"):
        draft.refuse(
            "greater_is_better",
            f"prefcli takes the checkpoint with the {better} {name}",
            code="RCP156",
            hint="remove it, or write another metric_for_best_model",
        )
    else:
        draft.drop("greater_is_better", "prefcli knows for each metric what is better")


def saving() -> MultiKeyRule:
    """The checkpoint schedule. It follows early stopping, which sets it."""

    def translate(draft: Draft) -> None:
        strategy, steps = draft.given("save_strategy"), draft.given("save_steps")
        if "training.save_steps" in draft.values:
            for key in ("save_strategy", "save_steps"):
                draft.drop(key, SAVED_AT_EVALS)
            return
        if strategy not in (None, "steps"):
            draft.drop("save_strategy", SAVES)
            draft.drop("save_steps", f"save_strategy {strategy} ignores it")
        elif isinstance(steps, int | None) and steps != 0:
            draft.drop("save_strategy", SAVES)
            if steps is not None:
                draft.put("training.save_steps", steps, "save_steps")
            return
        else:
            draft.drop("save_strategy", SAVES)
            draft.drop("save_steps", "prefcli only takes a whole number of steps")
        default = Training.model_fields["save_steps"].default
        draft.note(
            f"a checkpoint is saved every {default} steps, prefcli's default; write "
            "training.save_steps to change it"
        )

    return MultiKeyRule(translate, "training.save_steps")


def trackers() -> MultiKeyRule:
    """Experiment trackers, and the name of the run there."""

    def translate(draft: Draft) -> None:
        names = word_list(draft.given("report_to") or [])
        if names is None:
            message = "is not the name of a tracker or a list of names"
            draft.refuse("report_to", message, code="RCP157")
            return
        if names == ["all"]:
            message = "'all' depends on the installed packages"
            draft.refuse("report_to", message, code="RCP160", hint="list the trackers")
            return
        names = [name for name in names if name != "none"]
        if unknown := [name for name in names if name not in _TRACKERS]:
            draft.refuse(
                "report_to",
                f"prefcli does not report to {', '.join(unknown)}",
                code="RCP156",
                hint=f"write one of {', '.join(_TRACKERS)}; metrics.jsonl is always written",
            )
        elif names:
            draft.put("logging.report_to", names, "report_to")
            if draft.given("run_name") is not None:
                draft.put("logging.run_name", draft.given("run_name"), "run_name")
        else:
            draft.drop("report_to", "no tracker; metrics.jsonl is always written")
        if "logging.run_name" not in draft.values:
            draft.drop("run_name", "only trackers use it")

    return MultiKeyRule(translate, "logging.report_to", "logging.run_name")


def push_to_hub(*, implied_by_repository: bool = False) -> MultiKeyRule:
    """The push of the finished model.

    implied_by_repository: hub_model_id alone enables it, and the repository is private.
    """

    def translate(draft: Draft) -> None:
        repository = draft.given("hub_model_id")
        enabled = repository if implied_by_repository else is_on(draft.given("push_to_hub"))
        if not enabled:
            for key in HUB_KEYS:
                draft.drop(key, "the file pushes nothing to the hub")
            return
        if repository is None:
            repository = Path(str(draft.given("output_dir"))).absolute().name
            draft.put("push_to_hub.repo_id", repository, "push_to_hub")
        else:
            draft.put("push_to_hub.repo_id", repository, "hub_model_id")
            draft.drop("push_to_hub", "the section push_to_hub enables it")
        if draft.given("hub_private_repo") is not None:
            draft.put("push_to_hub.private", draft.given("hub_private_repo"), "hub_private_repo")
        elif not implied_by_repository:
            draft.note(
                "push_to_hub: the repository is private, prefcli's default; write "
                "push_to_hub.private: false to publish the model"
            )
        for key in ("hub_revision", "hub_model_revision"):
            if draft.given(key) is not None:
                draft.put("push_to_hub.revision", draft.given(key), key)
        for key in ("hub_strategy", "hub_always_push"):
            draft.drop(key, "prefcli pushes the finished model once")

    return MultiKeyRule(
        translate, "push_to_hub.repo_id", "push_to_hub.private", "push_to_hub.revision"
    )


HUB_KEYS = (
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_model_revision",
    "hub_strategy",
    "hub_always_push",
)


def remote_code(name_key: str, revision_key: str) -> MultiKeyRule:
    """trust_remote_code, which prefcli allows for local models and pinned commits."""

    def translate(draft: Draft) -> None:
        if not is_on(draft.given("trust_remote_code")):
            draft.drop("trust_remote_code", "it is off")
            return
        name, revision = str(draft.given(name_key)), draft.given(revision_key)
        if is_local(name) or (isinstance(revision, str) and is_commit(revision)):
            draft.put("model.trust_remote_code", True, "trust_remote_code")
            return
        draft.refuse(
            "trust_remote_code",
            f"runs code from {name} without a pinned commit",
            code="RCP162",
            hint=f"write {revision_key}: COMMIT (all 40 hex digits), or remove it",
        )

    return MultiKeyRule(translate, "model.trust_remote_code")


def put_lora(draft: Draft, paths: Mapping[str, str]) -> None:
    """Write each setting of the adapter that is given or has a default. paths: key to path."""
    for key, path in paths.items():
        if (value := draft.value(key)) is not None:
            draft.put(path, value, key)


def put_sources(draft: Draft, path: str, sources: SourceList, key: str) -> None:
    """Write data.train or data.eval."""
    if not sources:
        return
    values = [
        {name: value for name, value in source.items() if (name, value) != ("fraction", 1.0)}
        for source, _ in sources
    ]
    if len(values) == 1:
        draft.put(path, values[0], key, *sources[0][1])
    else:
        draft.put(path, values, key)
        for i, (_, inside) in enumerate(sources):
            draft.origins[f"{path}[{i}]"] = (key, *inside)
    if any("fraction" in source for source in values):
        draft.note(
            f"{path}: the rows of a fraction are drawn with prefcli's seed and differ from "
            f"{draft.tool}'s"
        )


def drop_random_split(draft: Draft, key: str, *inside: str | int) -> None:
    """Drop a setting that splits evaluation rows off the training rows at random."""
    draft.drop(key, "prefcli does not split evaluation rows off the training rows", *inside)
    draft.note(
        f"there is no evaluation: {draft.tool} splits rows off at random, and prefcli trains on "
        "all of them; write held-out data as data.eval"
    )
