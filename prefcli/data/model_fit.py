"""Checks that model, tokenizer and reference fit each other and data.max_length."""

from __future__ import annotations

import json

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prefcli.data.split import Split
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.model import load_base_config, load_tokenizer, reference_model
from prefcli.model.loading import context_length
from prefcli.recipe.context_length import context_problem
from prefcli.recipe.schema import Recipe


def check_model_fit(
    recipe: Recipe,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    where: str = "model",
) -> None:
    """Compare max_length and the tokenizer with the model's config. Raises RecipeError."""
    text = config.get_text_config()
    context = context_length(config)
    problems = []
    if context is not None and (problem := context_problem(recipe.data.max_length, context, where)):
        problems.append(problem)
    own = where == "reference" or recipe.model.tokenizer is None
    path = f"{where}.{'name_or_path' if own else 'tokenizer'}"
    problems += _tokens_past_embedding(tokenizer, text.vocab_size, where, path)
    if problems:
        raise RecipeError(problems)


def _tokens_past_embedding(
    tokenizer: PreTrainedTokenizerBase, rows: int, where: str, path: str
) -> list[Problem]:
    """Find tokens without a row in the embedding; added tokens that nothing uses may have none.

    path: the key that names the tokenizer.
    """
    past = past_embedding(tokenizer, rows)
    added = tokenizer.get_added_vocab()
    own = sorted(past.keys() - added.keys(), key=lambda token: past[token])
    if own:
        return [
            Problem(
                f"the tokenizer has {len(tokenizer)} tokens, the {where} only {rows}: {own[0]!r} "
                f"is {past[own[0]]}",
                path=path,
                hint="name a folder whose tokenizer and model belong together",
                code="MDL022",
            )
        ]
    return [
        Problem(
            f"the {name} token {token!r} is {past[token]} in the tokenizer, and the embedding of "
            f"the {where} has rows 0 to {rows - 1}",
            path=path,
            hint=f"make an existing token the {name} token in tokenizer_config.json, or resize the "
            "embedding (resize_token_embeddings) and save the model again",
            code="MDL031",
        )
        for name in ("pad", "eos", "bos")
        if (token := getattr(tokenizer, f"{name}_token")) in past
    ]


def past_embedding(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """Return the tokens whose id the embedding has no row for, with their ids."""
    return {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}


def check_rows_fit(split: Split, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise DataError for the first row that holds a token past the embedding.

    rows: of the embedding. Few tokenizers have such tokens, so that most rows are not read.
    """
    past = past_embedding(tokenizer, rows)
    if not past:
        return
    for at, row in enumerate(split.rows):
        text = json.dumps(row, ensure_ascii=False, default=str)
        token = next((token for token in past if json.dumps(token)[1:-1] in text), None)
        if token is not None:
            raise DataError(
                f"the row holds {token!r}, which is {past[token]} in the tokenizer, and the "
                f"embedding of the model has rows 0 to {rows - 1}",
                code="MDL031",
                place=split.place(at),
                hint="remove the token from the row, or resize the embedding "
                "(resize_token_embeddings) and save the model again",
            )


def check_reference(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a named reference has the policy's tokenizer. Raises RecipeError."""
    named = reference_model(recipe.reference, recipe.model)
    if named is None:
        return
    where = "reference"
    check_model_fit(recipe, load_base_config(named, where=where), tokenizer, where=where)
    own_tokenizer = load_tokenizer(named.model_copy(update={"chat_template": None}), where=where)
    if own_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise RecipeError(
            Problem(
                f"the tokenizer of {named.name_or_path} is not the policy's: its token ids map to "
                "different tokens",
                path="reference.name_or_path",
                hint="name a model with the same tokenizer",
                code="MDL022",
            )
        )
