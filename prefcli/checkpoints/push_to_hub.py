"""To the hub: after everything is saved, and only what is worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from prefcli import __version__
from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_metadata import now
from prefcli.console import is_main_process, say, warn
from prefcli.errors import Problem, PushError, RecipeError
from prefcli.health.overfitting import MAX_RATIO
from prefcli.hub.cache import offline
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.secrets import hide
from prefcli.recipe.sections import PushToHub


def check_push(recipe: Recipe) -> None:
    """What can be known before training. Raises RecipeError."""
    options = recipe.push_to_hub
    if options is None:
        return
    if offline():
        raise RecipeError(
            Problem(
                "there is no hub to push to: this machine is offline",
                path="push_to_hub",
                hint=f"leave it out, and send the model later: {_by_hand(options, recipe)}",
            )
        )
    if get_token() is None:
        raise RecipeError(
            Problem(
                "nobody is logged in to the hub",
                path="push_to_hub",
                hint="`hf auth login`, or export HF_TOKEN; or leave push out",
            )
        )
    if recipe.trains_adapter and is_local(recipe.model.name_or_path):
        warn(
            f"push_to_hub: the adapter will lie on {recipe.model.name_or_path}, a folder here that "
            "nobody who loads it from the hub has"
        )


def check_push_offline(recipe: Recipe) -> None:
    """Say where the model would go, and as whom, by asking the hub. Raises RecipeError."""
    check_push(recipe)
    options = recipe.push_to_hub
    if options is None:
        return
    try:
        name = HfApi().whoami()["name"]
    except Exception as error:  # the hub's, the network's, or a proxy's
        raise RecipeError(
            hide(
                Problem(
                    f"the hub does not know this user: {_first_line(error)}",
                    path="push_to_hub",
                    hint="`hf auth login` with a token that may write, or export HF_TOKEN",
                )
            )
        ) from None
    say(f"push_to_hub: once it is finished, to {_place(options)}, as {name}")


def push(recipe: Recipe, folder: RunDir) -> None:
    """Send the model of a finished run, unless that is done. Raises PushError.

    For all processes; the main one does it, and keeps in run.json what came of it.
    """
    options = recipe.push_to_hub
    if options is None or not is_main_process():
        return
    run = folder.read_run()
    target = {"repo_id": options.repo_id, "revision": options.revision or "main"}
    done = run.get("push_to_hub", {})
    if done.get("status") == "done" and done.items() >= target.items():
        return
    by_hand = _by_hand(options, recipe)
    try:
        why, hint = _unworthy(run), f"if it is right all the same: {by_hand}"
        if why is None:
            say(f"push_to_hub: {folder.model} to {_place(options)}")
            url = _send(options, folder)
    except Exception as error:  # whatever it is, the model is saved
        why, hint = _first_line(error), f"the same command tries again; or {by_hand}"
    if why is not None:
        problem = hide(
            Problem(
                f"the model is saved in {folder.model}, but not pushed to {options.repo_id}: {why}",
                path="push_to_hub",
                hint=hint,
            )
        )
        _keep(folder, run, {**target, "status": "failed", "why": problem.message})
        raise PushError(problem)
    _keep(folder, run, {**target, "status": "done", "url": url})
    say(f"push_to_hub: done: {url}")


def _unworthy(run: Mapping[str, Any]) -> str | None:
    """Why not to push."""
    figures = run.get("eval", {})
    first, last = (figures.get(when, {}).get("eval_loss") for when in ("first", "last"))
    if last is None:
        return None
    if not math.isfinite(last):
        return f"its eval_loss is {last}"
    if first is not None and first > 0 and last > MAX_RATIO * first:
        return f"its eval_loss is {last:.4g}, and was {first:.4g} before the first step"
    return None


def _send(options: PushToHub, folder: RunDir) -> str:
    hub = HfApi()
    place = hub.create_repo(options.repo_id, private=options.private, exist_ok=True)
    if options.private and not hub.repo_info(place.repo_id).private:
        raise ValueError("the repository is public, and push.private is true")
    if options.revision is not None:
        hub.create_branch(place.repo_id, branch=options.revision, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=place.repo_id,
        folder_path=folder.model,
        revision=options.revision,
        commit_message=f"Trained with prefcli {__version__}",
    )
    return str(commit.commit_url)


def _keep(folder: RunDir, run: dict[str, Any], entry: dict[str, Any]) -> None:
    run["push_to_hub"] = {**entry, "at": now()}
    with suppress(OSError):  # the folder may have been made read-only since
        folder.write_run(run)


def _place(options: PushToHub) -> str:
    branch = f", branch {options.revision}" if options.revision else ""
    secret = "private" if options.private else "PUBLIC"
    return f"{constants.ENDPOINT}/{options.repo_id} ({secret}{branch})"


def _by_hand(options: PushToHub, recipe: Recipe) -> str:
    flags = " --private" if options.private else ""
    flags += f" --revision {options.revision}" if options.revision else ""
    return f"`hf upload {options.repo_id} {RunDir(recipe.output_dir).model} .{flags}`"


def _first_line(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return str(error.server_message)
    return str(error).strip().partition("\n")[0] or type(error).__name__
