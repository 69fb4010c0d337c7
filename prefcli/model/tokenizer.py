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
    """Load the tokenizer of the model or adapter, else of the adapter's base.

    Raises RecipeError if there is none or it has no EOS token.
    """
    source = resolve_model(options, where=where)
    folder = Path(options.name_or_path).expanduser()
    if source.adapter is not None and not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(source.base, where=where)
    with loading(options, "tokenizer", where):
        tokenizer = AutoTokenizer.from_pretrained(
            options.name_or_path, **from_pretrained_kwargs(options)
        )
    if options.chat_template is not None:
        tokenizer.chat_template = _read_template(options.chat_template)
        _check_template(tokenizer)
    if options.eos_token is not None:
        _set_eos(tokenizer, options.eos_token, where)
    if tokenizer.eos_token is None:
        raise RecipeError(
            Problem(
                f"the tokenizer of {options.name_or_path} has no end-of-sequence token",
                path=f"{where}.name_or_path",
                hint="name one in model.eos_token",
                code="MDL012",
            )
        )
    if tokenizer.pad_token is None:
        # Safe for training: labels are masked by position, so EOS tokens stay trained.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_eos(tokenizer: PreTrainedTokenizerBase, token: str, where: str) -> None:
    if token not in tokenizer.get_vocab():
        raise RecipeError(
            Problem(
                f"the tokenizer has no token {token!r}",
                path=f"{where}.eos_token",
                hint="name a token of its vocabulary; a new one would have no trained embedding",
                code="MDL013",
            )
        )
    tokenizer.eos_token = token


def _read_template(text: str) -> str:
    if not any(mark in text for mark in ("{{", "{%", "\n")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise RecipeError(
                Problem(
                    f"no such file: {text}",
                    path="model.chat_template",
                    hint="name a .jinja file, or write the template itself",
                    code="MDL014",
                )
            )
        text = path.read_text(encoding="utf-8")
    return text


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except TemplateError as error:
        line = f"line {number}: " if (number := getattr(error, "lineno", None)) else ""
        raise RecipeError(
            Problem(
                "the chat template fails on a user and an assistant message: "
                f"{line}{error.message}",
                path="model.chat_template",
                hint="correct the template",
                code="MDL015",
            )
        ) from None
