"""Checks that model, tokenizer and reference fit each other and data.max_length."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prefcli.errors import Problem, RecipeError
from prefcli.model import load_base_config, load_tokenizer, reference_model
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
    context = getattr(text, "max_position_embeddings", None)
    problems = []
    if context is not None and recipe.data.max_length > context:
        problems.append(
            Problem(
                f"{recipe.data.max_length} exceeds the {where}'s context of {context} tokens",
                path="data.max_length",
                hint=f"write {context} or less",
                code="MDL023",
            )
        )
    if len(tokenizer) > text.vocab_size:
        problems.append(
            Problem(
                f"the tokenizer has {len(tokenizer)} tokens, the {where} only {text.vocab_size}",
                path=f"{where}.name_or_path",
                hint="name a folder whose tokenizer and model belong together",
                code="MDL022",
            )
        )
    if problems:
        raise RecipeError(problems)


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
