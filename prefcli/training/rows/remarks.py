"""What tokenizer, chat template and generation config say against each other, before any row."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from prefcli.errors import Problem
from prefcli.model import load_tokenizer
from prefcli.model.ends import Ends, end_remarks, ends_of
from prefcli.model.template import template_remarks
from prefcli.recipe.schema import Recipe
from prefcli.training.record import lineage


def token_remarks(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    ends: Ends | None = None,
) -> list[Problem]:
    """For a warning each; none of them stops a run. Raises RecipeError where nothing is there.

    ends: as `Inputs` has them; left out, they are looked up.
    """
    model = recipe.model
    before = stage = None
    if conversational and model.chat_template is not None:
        before = load_tokenizer(model.model_copy(update={"chat_template": None}))
        last = lineage(recipe)[-1]["stage"]
        stage = None if last in ("start", "adapter") else last
    ends = ends or ends_of(model, tokenizer, adapter=recipe.trains_adapter)
    return [
        *end_remarks(ends, tokenizer),
        *template_remarks(tokenizer, before, conversational=conversational, stage=stage),
    ]
