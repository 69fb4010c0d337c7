"""What a run does with its rows before it trains, done ahead of it, without a model's weights."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from prefcli.data.cache_keys import trl_map_key
from prefcli.data.run_datasets import RunDatasets, check_model_fit, load_run_datasets
from prefcli.data.trl_map_cache import CachedMapDataset, serialized
from prefcli.errors import RecipeError
from prefcli.methods import Method
from prefcli.model import load_base_config, load_tokenizer
from prefcli.model.device import Device
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import build, trl_options


@dataclasses.dataclass(frozen=True)
class Ahead:
    inputs: RunDatasets
    folder: Path
    said: list[str]

    def lines(self) -> list[str]:
        return [*self.inputs.cache_lines(), f"data: kept in {self.folder}"]

    def as_dict(self) -> dict[str, Any]:
        assert self.inputs.kept is not None
        return {
            "key": self.inputs.kept.stem,
            "folder": str(self.folder),
            "before": self.inputs.was_cached,
            "splits": {split.name: split.as_dict() for split in self.inputs.splits},
            "warnings": list(self.inputs.warnings),
        }


def pretokenize(recipe: Recipe, method: Method) -> Ahead:
    """Rows read, measured and tokenised, where a run of the recipe will find them.

    Raises RecipeError, also where there is nowhere to keep them, and DataError.
    """
    tokenizer = load_tokenizer(recipe.model)
    check_model_fit(recipe, load_base_config(recipe.model), tokenizer)
    inputs = load_run_datasets(recipe, method, tokenizer)
    if inputs.kept is None:
        raise RecipeError(
            "datasets' cache can't be written, so there is nowhere to keep prepared rows",
            hint="set HF_DATASETS_CACHE to a folder that can be written",
        )
    method, said = inputs.resolve_from_data(method)
    _through_trl(recipe, method, tokenizer, inputs)
    return Ahead(inputs, inputs.kept.parent.parent, said)


def _through_trl(
    recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase, inputs: RunDatasets
) -> None:
    """trl prepares rows where it builds its trainer; what that would train does not matter."""
    config_class, trl_class = method.trl_classes()
    here = Device("cpu", "cpu", bfloat16=False)
    # The fields that are left are those of the run, as far as its rows depend on them.
    alone = {"precompute_ref_log_probs": False, "report_to": []}
    options = trl_options(recipe, method, here, world=1)
    options |= {name: value for name, value in alone.items() if name in options}
    key = trl_map_key(recipe, method, tokenizer)
    more = {"ref_model": _nobody(tokenizer)} if method.needs_reference else {}
    with tempfile.TemporaryDirectory() as folder, serialized(trl_class, key):
        trl_class(
            model=_nobody(tokenizer),
            args=build(options | {"output_dir": folder}, config_class),
            train_dataset=CachedMapDataset.of(inputs.train.for_trl(), key),
            eval_dataset=CachedMapDataset.of(inputs.eval.for_trl(), key) if inputs.eval else None,
            processing_class=tokenizer,
            **more,
        )


def _nobody(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The smallest model that knows as many words."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
