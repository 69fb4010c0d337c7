"""Settings of trackers and of the hub that the tools spread over several keys, by trl's names."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on, word_list
from prefcli.recipe.sections import Logging

RULES = RuleBook()
_TRACKERS = get_args(get_args(Logging.model_fields["report_to"].annotation)[0])
_SWITCHES = {
    "wandb": ("wandb_project", "use_wandb", "enable_wandb"),
    "mlflow": ("mlflow_experiment_name", "use_mlflow", "enable_mlflow"),
    "tensorboard": ("use_tensorboard", "enable_tensorboard"),
}
TRACKER_SWITCHES = " ".join(switch for switches in _SWITCHES.values() for switch in switches)
"""Keys that enable a tracker."""


@RULES.together(
    f"report_to run_name wandb_run_id {TRACKER_SWITCHES}", "logging.report_to lists the trackers"
)
def trackers(draft: Draft) -> None:
    """Translate experiment trackers, and the name of the run there."""
    given, key = draft.given("report_to"), "report_to"
    names = word_list(given) if given else []
    if names is None:
        message = "is not the name of a tracker or a list of names"
        draft.refuse("report_to", message, code="RCP157")
        return
    for name, switches in _SWITCHES.items():
        enabled = [switch for switch in switches if is_on(draft.given(switch))]
        if enabled and name not in names:
            key = key if names else enabled[0]
            names = [*names, name]
    if unknown := [name for name in names if name not in _TRACKERS and is_on(name)]:
        draft.note(
            f"prefcli does not report to {', '.join(unknown)}; metrics.jsonl is always written, "
            f"and logging.report_to takes {', '.join(_TRACKERS)}"
        )
    if known := [name for name in names if name in _TRACKERS]:
        draft.put("logging.report_to", known, key)
        run_name = "run_name" if draft.given("run_name") else "wandb_run_id"
        draft.put_given("logging.run_name", run_name)


@RULES.together(
    "push_to_hub hub_model_id hub_private_repo hub_revision hub_strategy hub_always_push",
    "prefcli pushes the finished model once, if the recipe has a section push_to_hub",
)
def push_to_hub(draft: Draft) -> None:
    """Translate the push of the finished model; in axolotl, hub_model_id alone enables it."""
    repository, implied = draft.given("hub_model_id"), draft.tool == "axolotl"
    if not (repository if implied else is_on(draft.given("push_to_hub"))):
        return
    if repository is None:
        repository = Path(str(draft.given("output_dir"))).absolute().name
        draft.put("push_to_hub.repo_id", repository, "push_to_hub")
    else:
        draft.put("push_to_hub.repo_id", repository, "hub_model_id")
    draft.put_given("push_to_hub.private", "hub_private_repo")
    draft.put_given("push_to_hub.revision", "hub_revision")
    if draft.given("hub_private_repo") is None and not implied:
        draft.note(
            "push_to_hub: the repository is private, prefcli's default; write "
            "push_to_hub.private: false to publish the model"
        )
