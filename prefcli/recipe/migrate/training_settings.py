"""Settings of training that the tools spread over several keys, by trl's names."""

from __future__ import annotations

from prefcli.metrics import metric
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on
from prefcli.recipe.sections import Training

RULES = RuleBook()
_NEVER_STOP = 1_000_000
"""Patience of a run that keeps the best checkpoint but does not stop early."""


@RULES.together("per_device_train_batch_size gradient_accumulation_steps")
def batch_size(draft: Draft) -> None:
    """Translate per-device batch size and accumulation, with the number of devices."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    rows, steps = map(draft.value, names)
    draft.handled |= {*names}
    for key, value in zip(names, (rows, steps), strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            draft.refuse(key, f"{value!r} is not a whole number of 1 or more", code="RCP157")
            return
    key = names[1] if names[1] in draft.data else names[0]
    if draft.sets("training.global_batch_size"):
        draft.drop(names[1], "the command line sets training.global_batch_size")
        draft.put("training.per_device_train_batch_size", rows, names[0])
    elif draft.devices is None:
        draft.refuse(
            key,
            "global_batch_size depends on the number of devices, which the file does not have",
            code="RCP159",
            hint=f"pass --devices N (per-device {rows} x accumulation {steps} x N)",
        )
    else:
        total = rows * steps * draft.devices
        draft.note(
            f"global_batch_size {total} is per-device {rows} x accumulation {steps} x "
            f"{draft.devices} devices"
        )
        if draft.tool == "LLaMA-Factory" and draft.method == "kto" and (rows, steps % 2) == (1, 0):
            rows = 2
            draft.note(
                "training.per_device_train_batch_size is 2: LLaMA-Factory pairs each row with "
                "another of the dataset for the KL term, and prefcli, like trl, with another of "
                "the device's batch"
            )
        draft.put("training.global_batch_size", total, names[1])
        draft.put("training.per_device_train_batch_size", rows, names[0])


@RULES.together("accelerator_config", "prefcli configures accelerate itself")
def accelerator(draft: Draft) -> None:
    """Refuse accelerate's configuration if it splits the batches."""
    given = draft.given("accelerator_config")
    if given is not None and (not isinstance(given, dict) or is_on(given.get("split_batches"))):
        message, hint = "prefcli configures accelerate itself", "remove it"
        draft.refuse("accelerator_config", message, code="RCP156", hint=hint)


@RULES.together(
    "warmup_ratio warmup_steps",
    "warmup_steps overrides warmup_ratio, and a constant schedule has no warmup",
)
def warmup(draft: Draft) -> None:
    """Translate warmup as in transformers: warmup_steps above 0 overrides warmup_ratio."""
    ratio, steps = draft.value("warmup_ratio"), draft.given("warmup_steps")
    if draft.value("lr_scheduler_type") == "constant":
        return  # without warmup
    if steps:
        # transformers 5 reads warmup_steps below 1 as a ratio.
        is_ratio = isinstance(steps, float) and steps < 1
        draft.put(f"training.warmup_{'ratio' if is_ratio else 'steps'}", steps, "warmup_steps")
    else:
        draft.put("training.warmup_ratio", 0.0 if ratio is None else ratio, "warmup_ratio")
        if draft.tool == "axolotl" and draft.given("warmup_ratio") is None:
            draft.note("axolotl's default warmup is 3 % of the steps, and at most 100 steps")


@RULES.together("lr_scheduler_type lr_scheduler_kwargs cosine_min_lr_ratio")
def schedule(draft: Draft) -> None:
    """Translate the schedule, and the floor of a cosine."""
    kind, given = draft.value("lr_scheduler_type"), draft.given("lr_scheduler_kwargs")
    options = dict(given) if isinstance(given, dict) else {}
    floor = draft.given("cosine_min_lr_ratio")
    peak, key = draft.value("learning_rate"), "lr_scheduler_kwargs"
    inside: tuple[str, ...] = ()
    if kind == "cosine" and floor == 1:
        kind, floor = "constant_with_warmup", None
        draft.drop("cosine_min_lr_ratio", "a cosine that never falls is constant")
    elif kind == "cosine" and floor:
        kind, key = "cosine_with_min_lr", "cosine_min_lr_ratio"
    elif kind == "cosine_with_min_lr" and "min_lr_rate" in options:
        floor, inside = options.pop("min_lr_rate"), ("min_lr_rate",)
    elif kind == "cosine_with_min_lr" and isinstance(options.get("min_lr"), float | int):
        inside = ("min_lr",)
        floor = options.pop("min_lr") / peak if isinstance(peak, float | int) and peak else None
    draft.put("training.lr_scheduler_type", kind, "lr_scheduler_type")
    if kind == "cosine_with_min_lr" and floor is not None:
        draft.put("training.min_lr_ratio", floor, key, *inside)
    elif kind == "cosine_with_min_lr":
        draft.refuse(
            "lr_scheduler_type",
            "lr_scheduler_kwargs has no min_lr_rate or min_lr",
            code="RCP161",
            hint="write lr_scheduler_kwargs: {min_lr_rate: 0.1}",
            path="training.min_lr_ratio",
        )
    else:
        draft.drop("cosine_min_lr_ratio", "only a cosine schedule uses it")
    for name in options:
        message, hint = "prefcli's schedules have no such setting", "remove it"
        draft.refuse("lr_scheduler_kwargs", message, name, code="RCP156", hint=hint)


@RULES.together(
    "eval_strategy eval_steps per_device_eval_batch_size evals_per_epoch",
    "data.eval and training.eval_steps, a number of steps, say when prefcli evaluates",
)
def evaluation(draft: Draft) -> None:
    """Translate the evaluation schedule. It follows the data in a table, as it needs data.eval."""
    if "data.eval" not in draft.values:
        return
    strategy, steps = draft.value("eval_strategy"), draft.given("eval_steps")
    draft.put_given("training.per_device_eval_batch_size", "per_device_eval_batch_size")
    if strategy == "steps" and isinstance(steps, int | None) and not draft.given("evals_per_epoch"):
        if interval := steps or draft.value("logging_steps"):
            draft.put("training.eval_steps", interval, "eval_steps" if steps else "logging_steps")
        return
    unit = "a share of the run" if isinstance(steps, float) else "an epoch"
    draft.note(
        f"evaluation runs before the first step and after the last, as the steps of {unit} are "
        "not in the file; write training.eval_steps for more"
    )


@RULES.together(
    "load_best_model_at_end early_stopping_patience early_stopping_threshold metric_for_best_model "
    "greater_is_better",
    "training.early_stopping, if the recipe has it, always ends with the best checkpoint",
)
def early_stopping(draft: Draft) -> None:
    """Translate the best checkpoint as the model, and early stopping. It follows evaluation()."""
    best, patience = "load_best_model_at_end", draft.given("early_stopping_patience")
    key = "early_stopping_patience" if patience else best
    steps = draft.values.get("training.eval_steps")
    if not is_on(draft.given(key)):
        return
    if steps is None:
        draft.refuse(
            key,
            "training.early_stopping needs data.eval and training.eval_steps, and the file "
            "gives no evaluation data or no number of steps",
            code="RCP163",
            hint="give evaluation data and eval_steps, or remove it",
        )
        return
    draft.put("training.early_stopping.patience", patience or _NEVER_STOP, key)
    draft.put("training.save_steps", steps, key)
    if key == best:
        draft.note(
            "training.early_stopping.patience is so large that the run does not stop early, "
            "but its best checkpoint becomes the model, as with load_best_model_at_end"
        )
    draft.put_given("training.early_stopping.threshold", "early_stopping_threshold")
    _put_metric(draft)


def _put_metric(draft: Draft) -> None:
    given, greater = draft.given("metric_for_best_model"), draft.given("greater_is_better")
    name = f"eval_{str(given or 'loss').removeprefix('eval_')}"
    if given is not None:
        draft.put("training.early_stopping.metric", name, "metric_for_best_model")
    better = metric(name).better
    if greater is not None and better and is_on(greater) != (better == "higher"):
        draft.refuse(
            "greater_is_better",
            f"prefcli takes the checkpoint with the {better} {name}",
            code="RCP156",
            hint="remove it, or write another metric_for_best_model",
        )


@RULES.together(
    "save_strategy save_steps saves_per_epoch save_epoch",
    "prefcli saves a checkpoint every training.save_steps",
)
def saving(draft: Draft) -> None:
    """Translate the checkpoint schedule. It follows early stopping, which sets it."""
    strategy, steps = draft.given("save_strategy"), draft.given("save_steps")
    if "training.save_steps" in draft.values:
        return
    if strategy in (None, "steps") and isinstance(steps, int) and steps > 0:
        draft.put("training.save_steps", steps, "save_steps")
    elif (strategy, steps) != (None, None) or draft.given("saves_per_epoch"):
        default = Training.model_fields["save_steps"].default
        draft.note(
            f"a checkpoint is saved every {default} steps, prefcli's default; write "
            "training.save_steps to change it"
        )
