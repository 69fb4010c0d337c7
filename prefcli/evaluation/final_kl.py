"""The KL to the reference of models whose runs could not measure it."""

from __future__ import annotations

from collections.abc import Sequence

from prefcli.evaluation.held_out_rows import load_held_out
from prefcli.evaluation.model_scores import RowScoring
from prefcli.evaluation.scored_models import ScoredModels
from prefcli.methods import Method
from prefcli.recipe import Recipe


def final_kl(recipe: Recipe, method: Method, models: Sequence[str]) -> list[float | None]:
    """Return the mean KL of each model's next token, as `prefcli eval` measures it.

    The reference stays loaded, and the models follow one another. Raises RecipeError, DataError.
    """
    scored_models = ScoredModels(recipe)
    choices = [scored_models.choose(name) for name in models]
    tokenizer = scored_models.tokenizer(choices[0])
    rows = load_held_out(recipe, method, tokenizer)
    return RowScoring(scored_models, rows, tokenizer, recipe.data.max_length).kl(choices)
