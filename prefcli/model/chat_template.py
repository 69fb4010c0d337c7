"""What is odd about a chat template, seen from what it writes for a few short conversations."""

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
_WINDOW = 40
"""Characters shown of each, where two templates part."""


def chat_template_warnings(
    tokenizer: PreTrainedTokenizerBase,
    before: PreTrainedTokenizerBase | None = None,
    *,
    conversational: bool,
    stage: str | None = None,
) -> list[Problem]:
    """For a warning each. That messages need a template at all is said where they are read.

    before: the tokenizer as it lies in the model's folder, where the recipe names a template.
    stage: the method that trained that model, where its run folder tells.
    """
    if not conversational or not tokenizer.chat_template:
        return []
    return [*_generation_prompt(tokenizer), *_another(tokenizer, before, stage)]


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    whole = _render(tokenizer, _TURN)
    asked, plain = (_render(tokenizer, _TURN[:1], add_generation_prompt=on) for on in (True, False))
    if whole is None or plain is None or asked != plain or not whole.startswith(plain):
        return []
    header, found, _ = whole[len(plain) :].partition(_ANSWER)
    if not found or not header.strip():
        return []
    return [
        Problem(
            f"the chat template has no generation prompt: {header!r} before an answer is trained "
            "as part of it, and the model has to write it itself",
            path="model.chat_template",
            hint="let the template end with "
            f"{{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}",
        )
    ]


def _another(
    tokenizer: PreTrainedTokenizerBase, before: PreTrainedTokenizerBase | None, stage: str | None
) -> list[Problem]:
    """Templates that only look different (comments, generation marks) write the same."""
    if before is None:
        return []
    by = f"the {stage} stage" if stage else "the model"
    if not before.chat_template:
        if stage is None:
            return []  # a base model learns its first template now
        return [
            Problem(
                f"{by} had no chat template, so the model was trained on text; this template is "
                "new to it",
                path="model.chat_template",
                hint="train the stage before with the same template first",
            )
        ]
    for conversation in _CONVERSATIONS:
        for messages, asked in ((conversation, False), (conversation[:-1], True)):
            ours, theirs = (
                _render(each, messages, add_generation_prompt=asked) for each in (tokenizer, before)
            )
            if ours != theirs:
                return [
                    Problem(
                        f"this template writes {_window(ours, theirs)}, where that of {by} writes "
                        f"{_window(theirs, ours)}",
                        path="model.chat_template",
                        hint="leave it out, to go on with the template that the model knows",
                    )
                ]
    return []


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **chat: Any
) -> str | None:
    """None where the template refuses; a template is a program of the user's, and may raise all."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **chat)
    except Exception:
        return None
    return text


def _window(text: str | None, other: str | None) -> str:
    """The place in `text` where it parts from the other."""
    if text is None:
        return "nothing (it refuses a system turn, or two turns)"
    apart = next(
        (i for i, (a, b) in enumerate(zip(text, other or "", strict=False)) if a != b),
        min(len(text), len(other or "")),
    )
    start = max(0, apart - _WINDOW // 2)
    return repr(text[start : start + _WINDOW])
