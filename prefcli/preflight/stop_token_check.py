"""Warnings about the tokens at which a model stops, and about its chat template."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from prefcli.checkpoints.run_record import lineage
from prefcli.errors import Problem
from prefcli.model import load_tokenizer
from prefcli.model.chat_template import chat_template_warnings
from prefcli.model.stop_tokens import StopTokens, load_stop_tokens, stop_token_warnings
from prefcli.recipe.schema import Recipe


def tokenizer_warnings(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    ends: StopTokens | None = None,
) -> list[Problem]:
    """Compare tokenizer, chat template and generation config; the differences are warnings.

    ends: as `RunDatasets` has them; by default they are looked up.
    """
    model = recipe.model
    before = stage = None
    if conversational and model.chat_template is not None:
        before = load_tokenizer(model.model_copy(update={"chat_template": None}))
        last = lineage(recipe)[-1]["stage"]
        stage = None if last in ("start", "adapter") else last
    ends = ends or load_stop_tokens(model, tokenizer, adapter=recipe.trains_adapter)
    return [
        *stop_token_warnings(ends, tokenizer),
        *chat_template_warnings(tokenizer, before, conversational=conversational, stage=stage),
    ]
