"""Warnings about a chat template, from what it renders for a few short conversations."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.errors import Problem

_ANSWER = "an answer"
_TURN = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}]
_CONVERSATIONS = (
    _TURN,
    [*_TURN, *_TURN],
    [{"role": "system", "content": "a rule"}, *_TURN],
)
_EXCERPT = 40
"""Characters shown of each of two templates at their first difference."""


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
