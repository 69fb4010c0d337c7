"""The tokens at which generation stops, according to a model's generation config."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefcli.errors import Problem
from prefcli.model.base_model import resolve_base
from prefcli.model.loading import load_config, load_generation_config
from prefcli.recipe.sections import Model


@dataclass(frozen=True)
class StopTokens:
    """The stop tokens of a model after training."""

    ids: frozenset[int]
    """Ids at which generation stops."""
    initial_ids: frozenset[int]
    """The stop tokens of the starting model."""
    source: str
    """The file that has them, or the tokenizer."""
    saves_adapter: bool
    """The run saves an adapter, so the base's generation config does not change."""


def load_stop_tokens(
    options: Model, tokenizer: PreTrainedTokenizerBase, *, adapter: bool, where: str = "model"
) -> StopTokens:
    """Read the stop tokens from the generation config, else the config, else the tokenizer.

    adapter: the run saves an adapter. A full model is saved with the tokenizer's EOS added, by
    transformers' Trainer. Raises RecipeError.
    """
    base = resolve_base(options, where=where)
    tokenizer_eos = frozenset([tokenizer.eos_token_id])
    config = load_config(base, where)
    initial_ids, source = tokenizer_eos, "the tokenizer"
    if ids := _as_set(GenerationConfig.from_model_config(config).eos_token_id):
        initial_ids, source = ids, "config.json"
    generation = load_generation_config(base, where)
    if generation is not None and (ids := _as_set(generation.eos_token_id)):
        initial_ids, source = ids, "generation_config.json"
    ids = initial_ids if adapter else initial_ids | tokenizer_eos
    return StopTokens(ids, initial_ids, source, adapter)


def stop_token_warnings(
    stop_tokens: StopTokens, tokenizer: PreTrainedTokenizerBase
) -> list[Problem]:
    """Compare the stop tokens with the tokenizer's EOS and padding tokens."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    warnings = []
    if eos not in stop_tokens.initial_ids:
        names = ", ".join(_name(i, tokenizer) for i in sorted(stop_tokens.initial_ids))
        message = (
            f"the tokenizer ends texts with {_name(eos, tokenizer)}, but generation stops only at "
            f"{names} ({stop_tokens.source})"
        )
        warnings.append(
            Problem(
                f"{message}; training an adapter does not change that",
                path="model.name_or_path",
                hint=f"add {eos} to eos_token_id in the base model's generation_config.json, or "
                "generation will not stop after an answer",
                code="MDL020",
            )
            if stop_tokens.saves_adapter
            else Problem(
                f"{message}; the trained model will stop at both, since training adds the "
                "tokenizer's",
                path="model.name_or_path",
                hint="make sure that the tokenizer's EOS token is the one that ends an answer",
                code="MDL020",
            )
        )
    if pad != eos and pad in stop_tokens.initial_ids:
        warnings.append(
            Problem(
                f"the padding token {_name(pad, tokenizer)} is a stop token in "
                f"{stop_tokens.source}: generation may stop before the first token "
                "(huggingface/transformers issue 48016)",
                path="model.name_or_path",
                hint=f"remove {pad} from eos_token_id there, or set another pad_token in "
                "tokenizer_config.json",
                code="MDL021",
            )
        )
    return warnings


def _as_set(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def _name(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    return f"{token}={token_id}" if token is not None else f"{token_id} (not in the tokenizer)"
