"""The record of a run in run.json: versions, device, lineage, and what the run found."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from prefcli import __version__
from prefcli.checkpoints.run_dir import RunDir, Status
from prefcli.console import is_main_process
from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.model import Device, resolve_model
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import as_dict, as_list

_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_FACTS_OF_THE_START = ("started", "check_sft", "step_zero", "start_weights")
"""Facts about the run's start, which a resume does not measure again."""

_OLD_KEYS = {"anchor": "expected", "push": "push_to_hub"}


@dataclass
class RunRecord:
    """The content of run.json, a field per key. A field that is None is not written."""

    folder: RunDir
    """Where it is saved; not part of the record."""

    status: Status = "running"
    method: str = "?"
    head: str | None = None
    """The head of the trained model: language_model, or reward."""
    advice: dict[str, str] | None = None
    """How to let the preference move the policy less or further, and to add an SFT term: `weaken`,
    `strengthen` and `sft_term`."""
    started: str | None = None
    prefcli: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    device: dict[str, str] = field(default_factory=dict)
    """`kind` and `name`."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    processes: int | None = None
    strategy: str | None = None
    data: dict[str, dict[str, Any]] | None = None
    """`Split.as_dict` by name."""
    resumed: list[dict[str, Any]] | None = None
    """One entry per resume: when, from which checkpoint, with which accepted differences."""
    hub: list[dict[str, str | None]] | None = None
    """Commits of everything that comes from the hub."""
    plan: dict[str, int] | None = None
    settings: dict[str, Any] | None = None
    """What the recipe sets; all other settings have their defaults."""
    parts: dict[str, dict[str, int]] | None = None
    """Parameters of each part of the model: trained, frozen, not reached by rows of text."""
    check_sft: dict[str, Any] | None = None
    step_zero: list[list[float]] | None = None
    """Reference log-probabilities of a few rows, for a resume to compare."""
    start_weights: str | None = None
    """Fingerprint of the weights that training started from."""
    effective: dict[str, Any] | None = None
    """Options that trl's trainer has, as proven when it was built."""
    model: dict[str, Any] | None = None
    """The verification of model/."""
    finished: str | None = None
    """When the run ended, however it ended."""
    why: str | None = None
    """The error that ended it."""
    steps: int | None = None
    eval: dict[str, dict[str, float]] | None = None
    """The `first` and the `last` evaluation."""
    expected: dict[str, dict[str, float | bool]] | None = None
    """The recipe's expected results compared with the last evaluation."""
    speed: dict[str, Any] | None = None
    best_step: int | None = None
    push_to_hub: dict[str, Any] | None = None

    @classmethod
    def begin(
        cls, folder: RunDir, recipe: Recipe, method: Method, device: Device, here: Mapping[str, Any]
    ) -> RunRecord:
        """Record the start of a run. here: processes and strategy."""
        return cls(
            folder,
            method=method.name,
            head=method.head,
            advice={"weaken": method.weaken, "strengthen": method.strengthen}
            | ({"sft_term": term} if (term := method.sft_term_advice) is not None else {}),
            started=now(),
            prefcli=__version__,
            versions={name: version(name) for name in _LIBRARIES},
            python=platform.python_version(),
            device={"kind": device.kind, "name": device.name},
            lineage=lineage(recipe),
            processes=here.get("processes"),
            strategy=here.get("strategy"),
        )

    @classmethod
    def load(cls, folder: RunDir) -> RunRecord:
        """Read run.json, also that of an older prefcli; unknown keys are ignored.

        Raises RecipeError for a file that prefcli cannot have written.
        """
        run = folder.read_run()
        if not run:
            raise _damaged(folder, "can't be read, or is empty")
        run |= {new: run[old] for old, new in _OLD_KEYS.items() if old in run}
        values = {key: run[key] for key in _keys(cls) if key in run}
        types = get_type_hints(cls)
        for key, value in values.items():
            try:
                TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError:
                raise _damaged(folder, f"has a value of another type for {key}") from None
        return cls(folder, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of run.json."""
        values = {key: getattr(self, key) for key in _keys(type(self))}
        return {key: value for key, value in values.items() if value is not None}

    def save(self) -> None:
        """Write run.json, on the main process."""
        if is_main_process():
            self.folder.write_run(self.as_dict())

    def resume_from(
        self, before: RunRecord, checkpoint: Path, accepted: Sequence[str], *, same_rows: bool
    ) -> None:
        """Keep what the record of the run's earlier part says about its start.

        accepted: differences from that part. same_rows: whether the rows are still the same.
        """
        for key in _FACTS_OF_THE_START:
            value = getattr(before, key)
            if value is not None:
                setattr(self, key, value)
        if not same_rows:
            self.step_zero = None  # log-probabilities of rows that are no longer used
        entry = {"at": now(), "checkpoint": checkpoint.name, "anyway": list(accepted)}
        self.resumed = [*(before.resumed or []), entry]

    def end(self, status: Status, why: str | None = None) -> None:
        """Record how the run ended, and when."""
        self.status, self.finished, self.why = status, now(), why


def _damaged(folder: RunDir, what: str) -> RecipeError:
    return RecipeError(
        Problem(
            f"{folder.run} {what}",
            path="output_dir",
            hint="restore the file, or name another output_dir",
            code="RUN016",
        )
    )


def _keys(record: type[RunRecord]) -> Iterable[str]:
    return (f.name for f in fields(record) if f.name != "folder")


def own_settings(recipe: Recipe, method: str) -> dict[str, Any]:
    """Return what the recipe sets for one of its methods, without the defaults."""
    others = {name for name in recipe.methods if name != method}
    return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=others)


def lineage(recipe: Recipe) -> list[dict[str, Any]]:
    """List the stages behind the starting weights, oldest first, as far as run.json files say."""
    name = recipe.model.name_or_path
    parent = RunDir(str(Path(name).parent))
    if Path(name).name == "model" and parent.run.is_file():
        run = parent.read_run()
        stage: dict[str, Any] = {"stage": str(run.get("method", "?")), "model": name}
        before = [as_dict(earlier) for earlier in as_list(run.get("lineage"))]
    else:
        start = resolve_model(recipe.model)
        stage = {"stage": "start", "model": name, "revision": recipe.model.revision}
        before = []
        if start.adapter is not None:
            stage["stage"] = "adapter"
            before = [{"stage": "start", "model": start.base.name_or_path}]
    if recipe.model.adapter is not None:
        stage["adapter"] = recipe.model.adapter
    return [*before, stage]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
