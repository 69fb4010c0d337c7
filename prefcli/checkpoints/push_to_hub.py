"""Pushes the model of a finished run to the Hugging Face Hub, after everything is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from prefcli import __version__
from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_record import now
from prefcli.console import is_main_process, say
from prefcli.errors import Problem, PushError, RecipeError, UnreachableError
from prefcli.health.overfitting import MAX_RATIO
from prefcli.hub.cache import offline
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.secrets import hide
from prefcli.recipe.sections import PushToHub
from prefcli.text import first_line


def check_push(recipe: Recipe) -> list[str]:
    """Ask the hub who pushes, and describe the target. Raises RecipeError."""
    options = recipe.push_to_hub
    if options is None:
        return []
    if offline():
        raise RecipeError(
            Problem(
                "this machine is offline, so the model cannot be pushed",
                path="push_to_hub",
                hint=f"remove it, and upload the model later: {_upload_command(options, recipe)}",
                code="ENV056",
            )
        )
    if get_token() is None:
        raise RecipeError(
            Problem(
                "no one is logged in to the hub",
                path="push_to_hub",
                hint="run `hf auth login`, or export HF_TOKEN; or remove push_to_hub",
                code="ENV057",
            )
        )
    if not is_main_process():
        return []  # one question to the hub is enough
    try:
        name = HfApi().whoami()["name"]
    except HfHubHTTPError as error:
        raise RecipeError(
            hide(
                Problem(
                    f"the hub rejects this login: {_hub_message(error)}",
                    path="push_to_hub",
                    hint="run `hf auth login` with a token that may write, or export HF_TOKEN",
                    code="ENV057",
                )
            )
        ) from None
    except Exception as error:  # the network's, or a proxy's
        raise UnreachableError(
            hide(
                Problem(
                    f"cannot ask the hub who pushes: {_hub_message(error)}",
                    path="push_to_hub",
                    hint="check the network, or remove push_to_hub and upload the model later: "
                    f"{_upload_command(options, recipe)}",
                    code="ENV058",
                )
            )
        ) from None
    return [f"push_to_hub: to {_target(options)} as {name}, when the run is finished"]


def push_warnings(recipe: Recipe) -> list[str]:
    """Warn of an adapter whose base model is only on this machine."""
    if recipe.push_to_hub is None or not recipe.trains_adapter:
        return []
    name = recipe.model.name_or_path
    if not is_local(name):
        return []
    return [
        f"push_to_hub: the adapter's base model is the local folder {name}, which others "
        "cannot load from the hub"
    ]


def push(recipe: Recipe, folder: RunDir) -> None:
    """Push the model of a finished run, unless that is done. Raises PushError.

    Every process may call it; the main one pushes, and records the result in run.json.
    """
    options = recipe.push_to_hub
    if options is None or not is_main_process():
        return
    run = folder.read_run()
    target = {"repo_id": options.repo_id, "revision": options.revision or "main"}
    done = run.get("push_to_hub", {})
    if done.get("status") == "done" and done.items() >= target.items():
        return
    command = _upload_command(options, recipe)
    try:
        why, hint = _reason_not_to_push(run), f"to push it anyway: {command}"
        if why is None:
            say(f"push_to_hub: {folder.model} to {_target(options)}")
            url = _upload(options, folder)
    except Exception as error:  # whatever it is, the model is saved
        why, hint = _hub_message(error), f"run the same command to try again; or {command}"
    if why is not None:
        problem = hide(
            Problem(
                f"the model is saved in {folder.model}, but not pushed to {options.repo_id}: {why}",
                path="push_to_hub",
                hint=hint,
                code="RUN005",
            )
        )
        _record(folder, run, {**target, "status": "failed", "why": problem.message})
        raise PushError(problem)
    _record(folder, run, {**target, "status": "done", "url": url})
    say(f"push_to_hub: done: {url}")


def _reason_not_to_push(run: Mapping[str, Any]) -> str | None:
    evaluations = run.get("eval", {})
    first, last = (evaluations.get(when, {}).get("eval_loss") for when in ("first", "last"))
    if last is None:
        return None
    if not math.isfinite(last):
        return f"its eval_loss is {last}"
    if first is not None and first > 0 and last > MAX_RATIO * first:
        return f"its eval_loss is {last:.4g}, and was {first:.4g} before the first step"
    return None


def _upload(options: PushToHub, folder: RunDir) -> str:
    hub = HfApi()
    repository = hub.create_repo(options.repo_id, private=options.private, exist_ok=True)
    if options.private and not hub.repo_info(repository.repo_id).private:
        raise ValueError("the repository is public, and push_to_hub.private is true")
    if options.revision is not None:
        hub.create_branch(repository.repo_id, branch=options.revision, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=repository.repo_id,
        folder_path=folder.model,
        revision=options.revision,
        commit_message=f"Trained with prefcli {__version__}",
    )
    return str(commit.commit_url)


def _record(folder: RunDir, run: dict[str, Any], entry: dict[str, Any]) -> None:
    run["push_to_hub"] = {**entry, "at": now()}
    with suppress(OSError):  # the folder may have been made read-only since
        folder.write_run(run)


def _target(options: PushToHub) -> str:
    branch = f", branch {options.revision}" if options.revision else ""
    visibility = "private" if options.private else "PUBLIC"
    return f"{constants.ENDPOINT}/{options.repo_id} ({visibility}{branch})"


def _upload_command(options: PushToHub, recipe: Recipe) -> str:
    flags = " --private" if options.private else ""
    flags += f" --revision {options.revision}" if options.revision else ""
    return f"`hf upload {options.repo_id} {RunDir(recipe.output_dir).model} .{flags}`"


def _hub_message(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return str(error.server_message)
    return first_line(error)
