"""The tokenizer, with the recipe's chat template and a padding token."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefcli.errors import Problem, RecipeError
from prefcli.model.base_model import resolve_model
from prefcli.model.loading import loading
from prefcli.model.remote_code import from_pretrained_kwargs
from prefcli.recipe.sections import Model


def load_tokenizer(options: Model, *, where: str = "model") -> PreTrainedTokenizerBase:
    """The one beside the weights, or beside the adapter, or of the adapter's base.

    Raises RecipeError where there is none, or it lacks an end token.
    """
    start = resolve_model(options, where=where)
    folder = Path(options.name_or_path).expanduser()
    if start.adapter is not None and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(start.base, where=where)
    with loading(options, "tokenizer", where):
        tokenizer = AutoTokenizer.from_pretrained(
            options.name_or_path, **from_pretrained_kwargs(options)
        )
    if options.chat_template is not None:
        tokenizer.chat_template = _template(options.chat_template)
        _try_template(tokenizer)
    if options.eos_token is not None:
        _set_end(tokenizer, options.eos_token, where)
    if tokenizer.eos_token is None:
        raise RecipeError(
            Problem(
                f"the tokenizer of {options.name_or_path} has no end-of-sequence token",
                path=f"{where}.name_or_path",
                hint="name one in model.eos_token; without one a model never stops",
            )
        )
    if tokenizer.pad_token is None:
        # Safe for training: labels are masked by position, so end tokens are still learned.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_end(tokenizer: PreTrainedTokenizerBase, token: str, where: str) -> None:
    if token not in tokenizer.get_vocab():
        raise RecipeError(
            Problem(
                f"the tokenizer has no token {token!r}",
                path=f"{where}.eos_token",
                hint="name one that it has; a new token would have no trained embedding",
            )
        )
    tokenizer.eos_token = token


def _template(text: str) -> str:
    if not any(sign in text for sign in ("{{", "{%", "\n")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise RecipeError(
                Problem(
                    f"no such file: {text}",
                    path="model.chat_template",
                    hint="name a .jinja file, or write the template itself",
                )
            )
        text = path.read_text(encoding="utf-8")
    return text


def _try_template(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except TemplateError as error:
        line = f"line {number}: " if (number := getattr(error, "lineno", None)) else ""
        raise RecipeError(
            Problem(
                f"the template refuses one user and one assistant message: {line}{error.message}",
                path="model.chat_template",
                hint="correct the template; this is the least that any data asks of it",
            )
        ) from None
