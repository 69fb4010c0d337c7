"""The rows of a recipe without its weights: `prefcli data` audits them, `prepare` caches them."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefcli.data.audit_report import DataReport
from prefcli.data.cache_keys import trl_map_key
from prefcli.data.prompt_diversity import measure_diversity
from prefcli.data.run_datasets import RunDatasets
from prefcli.data.trl_map_cache import rows_for_trl, serialized
from prefcli.errors import RecipeError
from prefcli.memory.hardware import Hardware
from prefcli.methods import Head, Method
from prefcli.model.device import Device
from prefcli.model.loading import AUTO_CLASSES
from prefcli.preflight.checks import Check, checks_for
from prefcli.preflight.context import PreflightContext
from prefcli.recipe.defaults import resolve_defaults, with_batch_size
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import build, trl_options

_CPU = Device("cpu", "cpu", bfloat16=False)
_ANY_HARDWARE = Hardware(_CPU, 1, "single", None)
"""Rows are the same for every device."""


@dataclasses.dataclass(frozen=True)
class Pretokenized:
    """The rows of a run in the cache where the run will find them."""

    inputs: RunDatasets
    folder: Path
    resolved: list[str]
    """Settings of the method that the rows decide, for the log."""
    warnings: list[str]

    def lines(self) -> list[str]:
        return [*self.inputs.cache_lines(), f"data: cached in {self.folder}"]

    def as_dict(self) -> dict[str, Any]:
        assert self.inputs.cache_path is not None
        return {
            "key": self.inputs.cache_path.stem,
            "folder": str(self.folder),
            "before": self.inputs.was_cached,
            "splits": {split.name: split.as_dict() for split in self.inputs.splits},
            "warnings": self.warnings,
        }


def data_report(recipe: Recipe, method: Method, sample: int | None = None) -> DataReport:
    """Audit the rows. Raises RecipeError, and DataError for rows that cannot be read.

    sample: read this many rows of each source.
    """
    recipe = resolve_defaults(recipe, method)
    context = PreflightContext(
        recipe, method, _ANY_HARDWARE, _CPU, use_row_cache=False, sample=sample
    )
    _pass(context, checks_for("rows"))
    assert context.datasets is not None
    assert context.tokenizer is not None
    diversity = measure_diversity(context.datasets.train, context.tokenizer)
    _, resolved = context.datasets.resolve_from_data(method)
    warnings, errors = context.datasets.judge(recipe.data.checks)
    return DataReport(context.datasets, diversity, recipe.data.checks, resolved, warnings, errors)


def pretokenize(recipe: Recipe, method: Method) -> Pretokenized:
    """Read, check and tokenize the rows into the cache.

    Raises RecipeError, also if the cache is not writable, and DataError.
    """
    recipe = resolve_defaults(recipe, method)
    context = PreflightContext(recipe, method, _ANY_HARDWARE, _CPU)
    warnings = _pass(context, checks_for("fit", "data_checks"))
    datasets, tokenizer = context.datasets, context.tokenizer
    assert datasets is not None
    assert tokenizer is not None
    if datasets.cache_path is None:
        raise RecipeError(
            "the cache of datasets is not writable, so the prepared rows cannot be stored",
            hint="set HF_DATASETS_CACHE to a writable folder",
            code="ENV055",
        )
    _, resolved = datasets.resolve_from_data(method)
    _run_trl_maps(recipe, context.method, tokenizer, datasets)
    return Pretokenized(datasets, datasets.cache_path.parent.parent, resolved, warnings)


def _pass(context: PreflightContext, checks: tuple[Check, ...]) -> list[str]:
    """Run the checks without printing, and return their warnings."""
    return [
        warning
        for check in checks
        if (report := check.run(context)) is not None
        for warning in report.warnings
    ]


def _run_trl_maps(
    recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase, inputs: RunDatasets
) -> None:
    """Build trl's trainer on a tiny model: its constructor prepares the rows and caches them."""
    if not method.trainer.prepares_rows:
        return
    config_class, trl_class = method.trl_classes()
    if recipe.training.per_device_train_batch_size == "auto":
        recipe = with_batch_size(recipe, 1)  # the rows do not depend on it
    # All other options are those of the run, as far as its rows depend on them.
    changed = {"precompute_ref_log_probs": False, "report_to": []}
    options = trl_options(recipe, method, _CPU, world=1)
    options |= {name: value for name, value in changed.items() if name in options}
    key = trl_map_key(recipe, method, tokenizer)
    reference = {"ref_model": _tiny_model(tokenizer, method.head)} if method.needs_reference else {}
    with tempfile.TemporaryDirectory() as folder, serialized(trl_class, key):
        trl_class(
            model=_tiny_model(tokenizer, method.head),
            args=build(options | {"output_dir": folder}, config_class),
            train_dataset=rows_for_trl(inputs.train, method, tokenizer, key),
            eval_dataset=rows_for_trl(inputs.eval, method, tokenizer, key) if inputs.eval else None,
            processing_class=tokenizer,
            **reference,
        )


def _tiny_model(tokenizer: PreTrainedTokenizerBase, head: Head) -> PreTrainedModel:
    """Make the smallest model that has the tokenizer's vocabulary."""
    model: PreTrainedModel = AUTO_CLASSES[head].from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            num_labels=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model
