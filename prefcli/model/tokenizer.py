"""The tokenizer, with the recipe's chat template and a padding token."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from prefcli.errors import Problem, RecipeError
from prefcli.model.base_model import download_file, resolve_base, resolve_model
from prefcli.model.chat_template import check_template
from prefcli.model.loading import loading
from prefcli.model.remote_code import from_pretrained_kwargs
from prefcli.recipe.paths import is_local
from prefcli.recipe.sections import Model
from prefcli.text import first_line


def load_tokenizer(options: Model, *, where: str = "model") -> PreTrainedTokenizerBase:
    """Load model.tokenizer, or that of the model or adapter, else of the adapter's base.

    Raises RecipeError if there is none or it has no EOS token.
    """
    if options.tokenizer is not None:
        tokenizer = _named_tokenizer(options, where)
    else:
        source = resolve_model(options, where=where)
        folder = Path(options.name_or_path).expanduser()
        if source.adapter is not None and not (folder / "tokenizer_config.json").is_file():
            return load_tokenizer(source.base, where=where)
        tokenizer = _read_tokenizer(options, where)
    if options.chat_template is None:
        tokenizer.chat_template = _default_template(tokenizer.chat_template)
    else:
        tokenizer.chat_template = _read_template(options.chat_template)
    if tokenizer.chat_template is not None:
        check_template(tokenizer, where, own=options.chat_template is None)
    if options.eos_token is not None:
        _set_eos(tokenizer, options.eos_token, where)
    if tokenizer.eos_token is None:
        raise RecipeError(
            Problem(
                f"the tokenizer of {options.tokenizer or options.name_or_path} has no "
                "end-of-sequence token",
                path=f"{where}.{'tokenizer' if options.tokenizer else 'name_or_path'}",
                hint="name one in model.eos_token",
                code="MDL012",
            )
        )
    if tokenizer.pad_token is None:
        # Safe for training: labels are masked by position, so EOS tokens stay trained.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_tokenizer(options: Model, where: str) -> PreTrainedTokenizerBase:
    with loading(options, "tokenizer", where):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            options.name_or_path, **from_pretrained_kwargs(options)
        )
        tokenizer("a")  # some values of its files are read only now
    return tokenizer


def _named_tokenizer(options: Model, where: str) -> PreTrainedTokenizerBase:
    """Load model.tokenizer. Code that comes with it runs only from a local folder."""
    assert options.tokenizer is not None
    repository = Model(
        name_or_path=options.tokenizer,
        revision=options.tokenizer_revision,
        init="random",  # it needs no weights
        trust_remote_code=options.trust_remote_code and is_local(options.tokenizer),
    )
    try:
        return _read_tokenizer(repository, where)
    except RecipeError as error:
        raise RecipeError(
            [
                replace(p, path=(p.path or "").replace("name_or_path", "tokenizer"))
                for p in error.problems
            ]
        ) from None


def saved_tokenizer_fault(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Read a saved tokenizer back; return how it differs from the one that was saved, or None."""
    try:
        saved = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        return f"its tokenizer can't be loaded: {first_line(error)}"
    if saved.chat_template != tokenizer.chat_template:
        return "its chat template is not the one that was trained with"
    if len(saved) != len(tokenizer):
        return f"its tokenizer has {len(saved)} tokens instead of {len(tokenizer)}"
    return None


_PROCESSOR_FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)


def processor_files(options: Model) -> list[Path]:
    """Return the files of the processor that prepares images and sound for the base model.

    For a hub id, the hub is asked for those that are not in the cache.
    """
    base = resolve_base(options)
    folder = Path(base.name_or_path).expanduser()
    if folder.is_dir():
        return [folder / name for name in _PROCESSOR_FILES if (folder / name).is_file()]
    paths = []
    for name in _PROCESSOR_FILES:
        with suppress(OSError):  # unreachable: only what is in the cache
            paths.append(download_file(base.name_or_path, name, base.revision))
    return [path for path in paths if path is not None]


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


_SHIPPED = Path(__file__).parent / "chat_templates"


def shipped_templates() -> list[str]:
    """Return the names that `model.chat_template` accepts instead of a file."""
    return sorted(path.stem for path in _SHIPPED.glob("*.jinja"))


def _read_template(text: str) -> str:
    """Return a template, or the content of the file that is named instead."""
    if text in shipped_templates():
        return (_SHIPPED / f"{text}.jinja").read_text("utf-8")
    if not any(mark in text for mark in ("{{", "{%", "\n")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise RecipeError(
                Problem(
                    f"no such file: {text}",
                    path="model.chat_template",
                    hint="name a .jinja file, write the template itself, or one of "
                    + ", ".join(shipped_templates()),
                    code="MDL014",
                )
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise RecipeError(
                Problem(
                    f"can't read {text}: {first_line(error)}",
                    path="model.chat_template",
                    hint="save the template as UTF-8 text",
                    code="MDL014",
                )
            ) from None
    return text


def _default_template(template: Any) -> Any:
    """Return the default of a model's named templates, which apply_chat_template takes, too."""
    return template["default"] if isinstance(template, dict) and "default" in template else template
