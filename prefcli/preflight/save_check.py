"""A trial of what the end of a run saves: configs, tokenizer, and the processor of a multimodal
model. A file that cannot be saved would cost a whole training."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from prefcli.errors import Problem, RecipeError
from prefcli.model.base_model import resolve_base
from prefcli.model.loading import load_generation_config
from prefcli.model.tokenizer import processor_files, saved_tokenizer_fault
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line


def check_saving(
    recipe: Recipe, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Save the small files of model/ to a scratch folder and read them back. Raises RecipeError.

    The folder is TMPDIR's. An adapter is saved without the configs of its base.
    """
    generation = load_generation_config(resolve_base(recipe.model))
    try:
        with tempfile.TemporaryDirectory(prefix="prefcli-") as folder:
            if not recipe.trains_adapter:
                _save_configs(config, generation, tokenizer, folder)
            tokenizer.save_pretrained(folder)
            fault = saved_tokenizer_fault(Path(folder), tokenizer)
    except OSError as error:
        raise RecipeError(
            Problem(
                f"can't write temporary files to {tempfile.gettempdir()}: {error.strerror}",
                hint="set TMPDIR to a folder with some free space",
                code="ENV052",
            )
        ) from None
    # The libraries check only some values when they load them.
    except Exception as error:
        fault = f"{type(error).__name__}: {first_line(error)}"
    if fault is not None:
        raise RecipeError(
            Problem(
                f"what {recipe.model.name_or_path} would be saved with cannot be used: {fault}",
                path="model.name_or_path",
                hint="correct config.json, generation_config.json or the tokenizer's files; the "
                "run would fail when it saves model/",
                code="MDL033",
            )
        )


def _save_configs(
    config: PretrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
) -> None:
    """Save the configs with the tokenizer's special tokens, which transformers' Trainer adds."""
    model = SimpleNamespace(
        config=copy.deepcopy(config),
        generation_config=generation or GenerationConfig.from_model_config(config),
    )
    align_special_tokens(model, tokenizer)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def processor_lines(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return lines and warnings about the processor of a model that reads images or sound."""
    if recipe.trains_adapter:
        return [], []
    names = [path.name for path in processor_files(recipe.model)]
    if names:
        return [f"model: {', '.join(names)} of its processor will be copied to model/"], []
    return [], [
        f"{recipe.model.name_or_path} reads more than text, and has no processor "
        "(processor_config.json or preprocessor_config.json): model/ will answer text only until "
        "one is copied there"
    ]
