"""The recipe that a preflight checks, and the facts that its checks pass on to later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prefcli.checkpoints.disk import DiskSpace
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.checkpoints.run_dir import RunDir, Status
from prefcli.data.run_datasets import RunDatasets
from prefcli.memory.hardware import Hardware
from prefcli.memory.model_info import ModelInfo
from prefcli.memory.step_memory import Simulations, StepMemory
from prefcli.methods import Method
from prefcli.model import Device
from prefcli.model.base_model import ModelSource
from prefcli.model.parts import PartSize
from prefcli.preflight.training_plan import Plan
from prefcli.recipe.schema import Recipe


@dataclass
class PreflightContext:
    """The question of a preflight, in the first fields, and what its checks find, in the others.

    A field of the second kind is None until the check that fills it has passed.
    """

    recipe: Recipe
    method: Method
    """The recipe's; the rows replace it with one whose automatic settings are resolved."""
    target: Hardware
    """The devices that the run will have; a check chooses an automatic strategy."""
    device: Device
    """The device of this process."""
    resume: str = "auto"
    changes: ResumeDiff = field(default_factory=ResumeDiff)
    allow_unusual: bool = False
    use_row_cache: bool = True
    """Take the rows from the cache that runs share, or read them and write nothing."""
    sample: int | None = None
    """Read this many rows of each source; None reads all of them."""
    sample_after_error: int | None = None
    """The same, once a check has failed."""
    elsewhere: bool = False
    """The run will be on another machine: this one's packages and disk say little about it."""
    will_be_launched: bool = False
    """A launcher will start the processes of the run; this process is not one of them."""
    simulations: Simulations | None = None
    """How to predict the memory of a step; None where no setting depends on it."""
    reports_memory: bool = False
    """The caller reports a step that is too large, with advice, instead of the checks."""

    failed: bool = False
    status: Status | None = None
    """The state of an earlier run in output_dir."""
    checkpoint: Path | None = None
    """The checkpoint to resume from."""
    start: ModelSource | None = None
    config: PretrainedConfig | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    model_info: ModelInfo | None = None
    datasets: RunDatasets | None = None
    plan: Plan | None = None
    disk_space: DiskSpace | None = None

    @property
    def folder(self) -> RunDir:
        return RunDir(self.recipe.output_dir)

    @property
    def step_memory(self) -> StepMemory | None:
        """Predicts the memory of a step; None if the model or a simulation is missing."""
        if self.simulations is None or self.start is None or self.model_info is None:
            return None
        return StepMemory(self.recipe, self.start, self.model_info, self.datasets, self.simulations)


@dataclass(frozen=True)
class Prepared:
    """The result of a passed preflight: everything a run needs before it loads weights."""

    method: Method
    """With the settings that only the rows can resolve, such as kto's weights."""
    device: Device
    tokenizer: PreTrainedTokenizerBase
    datasets: RunDatasets
    plan: Plan
    parts: Mapping[str, PartSize]

    @classmethod
    def of(cls, context: PreflightContext) -> Prepared:
        """Take the facts of a context whose checks have all passed."""
        assert context.tokenizer is not None
        assert context.model_info is not None
        assert context.datasets is not None
        assert context.plan is not None
        return cls(
            context.method,
            context.device,
            context.tokenizer,
            context.datasets,
            context.plan,
            context.model_info.parts,
        )
