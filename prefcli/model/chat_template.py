"""A chat template's trial, and warnings from what it renders for a few short conversations."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prefcli.errors import Problem, RecipeError
from prefcli.text import first_line

_ANSWER = "an answer"
_TURN = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}]
_CONVERSATIONS = (
    _TURN,
    [*_TURN, *_TURN],
    [{"role": "system", "content": "a rule"}, *_TURN],
)
_EXCERPT = 40
"""Characters shown of each of two templates at their first difference."""
_SECONDS = 5
_MOST_TEXT = 10**6
"""Limits of one short conversation: a template is a program, which may never end."""


def check_template(
    tokenizer: PreTrainedTokenizerBase, where: str, *, own: bool, seconds: float = _SECONDS
) -> None:
    """Render a question and an answer. Raises RecipeError if the template cannot be used.

    own: the template comes with the model. Then it may refuse these messages, unlike the rows of
    the run, but it must end.
    """
    template = tokenizer.chat_template
    path = f"{where}.name_or_path" if own else "model.chat_template"
    problem = None
    if isinstance(template, dict):
        problem = f"is one of {', '.join(map(str, template))}, and none of them is named default"
    elif not isinstance(template, str):
        problem = f"is of type {type(template).__name__}; expected text"
    else:
        try:
            with time_limit(seconds):
                text = tokenizer.apply_chat_template(_TURN, tokenize=False)
            if len(text) > _MOST_TEXT:
                problem = f"makes {len(text):,} characters of a short question and answer"
            else:
                tokenizer(text)
        except TimeLimitError:
            problem = f"does not end within {seconds:g} s on a short question and answer"
        # A template is a program and may raise any exception.
        except Exception as error:
            if not own:
                problem = f"fails on a user and an assistant message: {_describe(error)}"
    if problem is not None:
        raise RecipeError(
            Problem(
                f"the chat template {problem}",
                path=path,
                hint="name a .jinja file in model.chat_template" if own else "correct the template",
                code="MDL015",
            )
        )


def _describe(error: Exception) -> str:
    if isinstance(error, TemplateError):
        line = f"line {number}: " if (number := getattr(error, "lineno", None)) else ""
        return f"{line}{error.message}"
    return f"{type(error).__name__}: {first_line(error)}"


class TimeLimitError(Exception):
    """A piece of code that did not end within its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code after some seconds. Works in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise TimeLimitError(f"it does not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, before)


def chat_template_warnings(
    tokenizer: PreTrainedTokenizerBase,
    saved: PreTrainedTokenizerBase | None = None,
    *,
    conversational: bool,
    stage: str | None = None,
) -> list[Problem]:
    """Check the generation prompt, and compare the template with the model's own.

    saved: the tokenizer of the model's folder, if the recipe names another template.
    stage: the method that trained that model, if its run folder says so.
    """
    if not conversational or not tokenizer.chat_template:
        return []
    return [*_missing_generation_prompt(tokenizer), *_changed_template(tokenizer, saved, stage)]


def _missing_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    answered = _render(tokenizer, _TURN)
    prompt, question = (
        _render(tokenizer, _TURN[:1], add_generation_prompt=on) for on in (True, False)
    )
    if answered is None or question is None:
        return []
    if prompt != question or not answered.startswith(question):
        return []
    header, answer, _ = answered[len(question) :].partition(_ANSWER)
    if not answer or not header.strip():
        return []
    return [
        Problem(
            f"the chat template has no generation prompt: {header!r} before an answer is trained "
            "as part of the answer, and the model has to generate it",
            path="model.chat_template",
            hint="end the template with "
            f"{{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}",
            code="MDL018",
        )
    ]


def _changed_template(
    tokenizer: PreTrainedTokenizerBase, saved: PreTrainedTokenizerBase | None, stage: str | None
) -> list[Problem]:
    """Compare what two templates render; comments and generation markers may differ."""
    if saved is None:
        return []
    origin = f"the {stage} stage" if stage else "the model"
    if not saved.chat_template:
        if stage is None:
            return []  # a base model gets its first template
        return [
            Problem(
                f"{origin} had no chat template, so the model was trained on text without this "
                "template",
                path="model.chat_template",
                hint=f"train {origin} with the same template first",
                code="MDL019",
            )
        ]
    for conversation in _CONVERSATIONS:
        for messages, generate in ((conversation, False), (conversation[:-1], True)):
            rendered, saved_rendered = (
                _render(t, messages, add_generation_prompt=generate) for t in (tokenizer, saved)
            )
            if rendered != saved_rendered:
                return [
                    Problem(
                        f"this template renders {_excerpt(rendered, saved_rendered)}, but the "
                        f"template of {origin} renders {_excerpt(saved_rendered, rendered)}",
                        path="model.chat_template",
                        hint="remove model.chat_template to continue with the model's own template",
                        code="MDL019",
                    )
                ]
    return []


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **chat: Any
) -> str | None:
    """Render messages. None if the template fails: it is a program and may raise any exception."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **chat)
    except Exception:
        return None
    return text


def _excerpt(text: str | None, other: str | None) -> str:
    """Show `text` around its first difference from the other."""
    if text is None:
        return "nothing (it fails on a system turn or on two turns)"
    difference = next(
        (i for i, (a, b) in enumerate(zip(text, other or "", strict=False)) if a != b),
        min(len(text), len(other or "")),
    )
    start = max(0, difference - _EXCERPT // 2)
    return repr(text[start : start + _EXCERPT])
