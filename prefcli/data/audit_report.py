"""The report of `prefcli data`: the audit of a run's splits without a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefcli.data.findings import join_places, level
from prefcli.data.prompt_diversity import PromptDiversity
from prefcli.data.run_datasets import RunDatasets
from prefcli.errors import Problem
from prefcli.recipe.sections import DataChecks


@dataclass(frozen=True)
class DataReport:
    """The audit of all splits, and the errors that would stop a run."""

    datasets: RunDatasets
    diversity: PromptDiversity
    """That of data.train."""
    checks: DataChecks
    method_notes: list[str]
    """Lines about the method's defaults that depend on the data."""
    warnings: list[Problem]
    errors: list[Problem]

    @property
    def is_sample(self) -> bool:
        return self.datasets.is_sample

    def as_dict(self) -> dict[str, Any]:
        """Return the splits by name, each finding with its meaning and level."""
        splits = {split.name: split.as_dict() for split in self.datasets.splits}
        for split in self.datasets.splits:
            for finding in split.findings:
                splits[split.name]["findings"][finding.name] |= {
                    "what": DataChecks.words(finding.name).what,
                    "where": join_places(finding.first),
                    "level": level(finding, self.checks),
                }
        splits["train"]["prompts"] = self.diversity.as_dict()
        return {
            "splits": splits,
            "checks": list(DataChecks.model_fields),
            "method_notes": self.method_notes,
            "warnings": [warning.as_dict() for warning in self.warnings],
        }
