"""The rows of a run without the run: what `prefcli data` tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefcli.data.findings import in_words, level
from prefcli.data.run_datasets import RunDatasets, read_run_datasets
from prefcli.errors import Problem
from prefcli.methods import Method
from prefcli.model import load_tokenizer
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import DataChecks


@dataclass(frozen=True)
class DataReport:
    """The audit of all splits. `errors` are what a run would stop for."""

    inputs: RunDatasets
    checks: DataChecks
    said: list[str]
    """What the method makes of the rows."""
    warnings: list[Problem]
    errors: list[Problem]

    @property
    def sampled(self) -> bool:
        return any(split.is_sample for split in self.inputs.splits)

    def as_dict(self) -> dict[str, Any]:
        """`splits` by name, each finding with its words and level."""
        splits = {split.name: split.as_dict() for split in self.inputs.splits}
        for split in self.inputs.splits:
            for finding in split.findings:
                splits[split.name]["findings"][finding.name] |= {
                    "what": DataChecks.words(finding.name).what,
                    "where": in_words(finding.first),
                    "level": level(finding, self.checks),
                }
        return {
            "splits": splits,
            "said": self.said,
            "warnings": [warning.as_dict() for warning in self.warnings],
        }


def data_report(recipe: Recipe, method: Method, sample: int | None = None) -> DataReport:
    """sample: so many rows of each source. Raises RecipeError, and DataError for broken rows."""
    inputs = read_run_datasets(recipe, method, load_tokenizer(recipe.model), sample=sample)
    _, said = inputs.resolve_from_data(method)
    warnings, errors = inputs.judge(recipe.data.checks)
    return DataReport(inputs, recipe.data.checks, said, warnings, errors)
