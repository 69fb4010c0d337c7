"""Where a model stops writing, as its generation config has it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefcli.errors import Problem
from prefcli.model.base_model import resolve_model
from prefcli.model.loading import load_config, loading
from prefcli.recipe.sections import Model


@dataclass(frozen=True)
class StopTokens:
    """Of a model as it will be once it is trained."""

    ids: frozenset[int]
    """Ids at which generation stops."""
    before: frozenset[int]
    """Those of the model that the run starts from."""
    named_in: str
    adapter: bool


def load_stop_tokens(
    options: Model, tokenizer: PreTrainedTokenizerBase, *, adapter: bool, where: str = "model"
) -> StopTokens:
    """Read from the generation config; where it names none, from the config, or the tokenizer.

    adapter: the run saves an adapter, so the base's generation config stays as it is. A whole model
    is saved with the tokenizer's end token among its own, by transformers' Trainer.
    Raises RecipeError.
    """
    bottom = options
    while (start := resolve_model(bottom, where=where)).adapter is not None:
        bottom = start.base
    own = frozenset([tokenizer.eos_token_id])
    config = load_config(bottom, where)
    before, named_in = own, "the tokenizer"
    found = _listed(GenerationConfig.from_model_config(config).eos_token_id)
    if found:
        before, named_in = found, "config.json"
    with loading(bottom, "generation config", where):
        try:
            generation = GenerationConfig.from_pretrained(
                bottom.name_or_path, revision=bottom.revision
            )
        except OSError:
            generation = None  # many models have none
    if generation is not None and (found := _listed(generation.eos_token_id)):
        before, named_in = found, "generation_config.json"
    return StopTokens(before if adapter else before | own, before, named_in, adapter)


def stop_token_warnings(ends: StopTokens, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """What is odd about them, for a warning each."""
    own, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    found = []
    if own not in ends.before:
        theirs = ", ".join(_shown(i, tokenizer) for i in sorted(ends.before))
        message = (
            f"the tokenizer ends texts with {_shown(own, tokenizer)}, but by {ends.named_in} the "
            f"model stops at {theirs} alone"
        )
        found.append(
            Problem(
                f"{message}; an adapter does not change that",
                path="model.name_or_path",
                hint=f"put {own} into eos_token_id of the base's generation_config.json, or no "
                "answer that ends with it will stop",
            )
            if ends.adapter
            else Problem(
                f"{message}; the trained model will stop at both, as training adds the tokenizer's",
                path="model.name_or_path",
                hint="make sure that it is the one that ends an answer",
            )
        )
    if pad != own and pad in ends.before:
        found.append(
            Problem(
                f"the padding token {_shown(pad, tokenizer)} is among the tokens that the model "
                f"stops at, in {ends.named_in}: generation may end before it begins "
                "(huggingface/transformers issue 48016)",
                path="model.name_or_path",
                hint=f"take {pad} out of eos_token_id there, or set another pad_token in the "
                "tokenizer_config.json",
            )
        )
    return found


def _listed(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def _shown(number: int, tokenizer: PreTrainedTokenizerBase) -> str:
    token = tokenizer.convert_ids_to_tokens(number)
    return f"{token}={number}" if token is not None else f"{number}, which the tokenizer lacks"
