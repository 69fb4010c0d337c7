"""A row as the model is trained on it: its tokens, the loss mask, and the cut at max_length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.data.special_tokens import SpecialTokens
from prefcli.data.token_text import TokenText
from prefcli.data.tokenization import (
    Ids,
    is_chat,
    prompt_alone,
    sides_of,
    tokenize,
)
from prefcli.data.turn_masks import loss_masks
from prefcli.methods import Method

_WIDTH = 100
_FIRST, _LAST = 8, 16
_MOST_SPANS = 6


@dataclass(frozen=True)
class Token:
    text: str
    """Escaped text; see TokenText."""
    id: int
    trained: bool
    """A target of the loss. The first token of a row never is, even if it has a label."""


@dataclass(frozen=True)
class Part:
    """The prompt or a completion, up to max_length."""

    tokens: Sequence[Token]
    cut: int = 0
    """Tokens beyond max_length."""


@dataclass(frozen=True)
class PromptBoundary:
    """The last tokens of the prompt alone, and the tokens in their place before each completion."""

    alone: Sequence[str]
    with_completion: Mapping[str, Sequence[str]]

    def line(self) -> str:
        alone = _barred(self.alone)
        sides = {side: _barred(tokens) for side, tokens in self.with_completion.items()}
        if len(set(sides.values())) == 1:
            merged = f"with the completion: {next(iter(sides.values()))}"
        else:
            merged = ", ".join(f"with {side}: {tokens}" for side, tokens in sides.items())
        return f"the prompt alone ends with {alone}, {merged}"


@dataclass(frozen=True)
class RowView:
    """The tokens of a row, for a log and as JSON."""

    place: str
    max_length: int
    parts: Mapping[str, Part]
    boundary: PromptBoundary | None
    prompt_note: str = ""
    """The term of the loss that trains the prompt, if not all of them do."""

    def lines(self) -> list[str]:
        """Return lines for a log: |tokens|between|bars|; long runs are shortened in the middle."""
        lines = [f"tokens: {self.place}"]
        labelled = []
        for name, part in self.parts.items():
            labelled += self._spans(name, part)
        column = max((len(label) for label, _, _ in labelled), default=0)
        for label, items, after in labelled:
            lines += _wrapped(f"  {label:<{column}}  ", items, after)
        if self.boundary is not None:
            lines.append(f"  prompt boundary: {self.boundary.line()}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, each token as [text, id, trained]."""
        boundary = self.boundary
        return {
            "place": self.place,
            "max_length": self.max_length,
            "parts": {
                name: {"tokens": [[t.text, t.id, t.trained] for t in part.tokens], "cut": part.cut}
                for name, part in self.parts.items()
            },
            "prompt_boundary": None
            if boundary is None
            else {
                "alone": list(boundary.alone),
                "with_completion": {
                    side: list(tokens) for side, tokens in boundary.with_completion.items()
                },
            },
        }

    def _spans(self, name: str, part: Part) -> list[tuple[str, list[str], str]]:
        """Return (label, tokens, suffix) for each run of trained or untrained tokens."""
        runs = [(on, [t.text for t in run]) for on, run in groupby(part.tokens, _is_trained)]
        spans = []
        for at, (on, texts) in enumerate(runs or [(False, [])]):
            note = f" {self.prompt_note}" if on and name == "prompt" and self.prompt_note else ""
            state = f"trained{note}" if on else "not trained"
            label = f"{name if at == 0 else '':<10} {_count(len(texts))}, {state}:"
            spans.append((label, texts, ""))
        if part.cut:
            label, texts, _ = spans[-1]
            after = f" ... cut here at {self.max_length}; {_count(part.cut)} more"
            spans[-1] = (label, texts, after)
        if len(spans) > _MOST_SPANS:
            half = _MOST_SPANS // 2
            between = f"{'':<10} ({len(spans) - 2 * half} more runs)"
            spans = [*spans[:half], (between, [], ""), *spans[-half:]]
        return spans


def view(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    max_length: int,
    place: str,
) -> RowView:
    """Tokenize a canonical row without its columns `_file` and `_row`.

    For assistant_only_loss, the tokenizer's chat template must mark assistant turns.
    """
    chat = is_chat(row)
    ids = SpecialTokens.of(tokenizer, method, chat=chat).around(tokenize(row, tokenizer))
    prompt, sides = ids["prompt_ids"], sides_of(ids)
    prompt_trained = method.trainer.sft_term_scope == "text" or method.trains_prompt
    columns = {name: [value] for name, value in row.items()}
    masks = loss_masks(
        columns,
        tokenizer,
        assistant_only=method.assistant_only,
        trains_prompt=method.trains_prompt,
    )
    marked = masks[0] if masks else None
    texts = TokenText(tokenizer)
    parts = {}
    if prompt:
        mask = [prompt_trained] * len(prompt)
        if marked is not None:
            mask = [on and bool(m) for on, m in zip(mask, marked, strict=False)]
        parts["prompt"] = _part(prompt, mask, max_length, texts)
    for side, tokens in sides.items():
        mask = [bool(m) for m in marked[len(prompt) :]] if marked else [True] * len(tokens)
        name = next((column for column in ("messages", "text") if column in row), side)
        parts[name] = _part(tokens, mask, max_length - len(prompt), texts)
    return RowView(
        place,
        max_length,
        parts,
        prompt_boundary(row, tokenizer),
        "by the SFT term only" if method.trainer.sft_term_scope == "text" else "",
    )


def prompt_boundary(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PromptBoundary | None:
    """Compare the prompt's last tokens with and without the completion; None if they are equal."""
    ids = tokenize(row, tokenizer)
    if not ids["merged_tokens"]:
        return None
    texts = TokenText(tokenizer)
    alone = prompt_alone(row, tokenizer)[-ids["merged_tokens"] :]
    size = sum(len(texts.raw(i)) for i in alone)
    return PromptBoundary(
        [texts.text(i) for i in alone],
        {
            side: [texts.text(i) for i in _covering(tokens, size, texts)]
            for side, tokens in sides_of(ids).items()
        },
    )


def _covering(tokens: Ids, size: int, texts: TokenText) -> Ids:
    """Return the first tokens that have at least `size` bytes."""
    first: Ids = []
    for token in tokens:
        if size <= 0:
            break
        first.append(token)
        size -= len(texts.raw(token))
    return first


def _part(tokens: Ids, mask: Sequence[bool], room: int, texts: TokenText) -> Part:
    room = max(room, 0)
    within = zip(tokens[:room], mask[:room], strict=True)
    return Part([Token(texts.text(i), i, on) for i, on in within], max(len(tokens) - room, 0))


def _is_trained(token: Token) -> bool:
    return token.trained


def _count(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def _shortened(texts: Sequence[str]) -> list[str]:
    """Drop the middle. The end keeps more tokens, as most faults are there."""
    omitted = len(texts) - _FIRST - _LAST
    if omitted <= 1:
        return list(texts)
    return [*texts[:_FIRST], f" ... {omitted} more ... ", *texts[-_LAST:]]


def _barred(texts: Sequence[str]) -> str:
    return f"|{'|'.join(_shortened(texts))}|"


def _wrapped(start: str, texts: Sequence[str], after: str) -> list[str]:
    """Wrap tokens at about 100 columns and indent them under their label."""
    if not texts:
        return [f"{start.rstrip()}{after}"]
    lines, line, empty = [], f"{start}|", True
    for text in _shortened(texts):
        if len(line) + len(text) + 1 > _WIDTH and not empty:
            lines.append(line)
            line = f"{' ' * len(start)}|"
        line += f"{text}|"
        empty = False
    if after and len(line) + len(after) > _WIDTH:
        lines.append(line)
        line = " " * (len(start) - 1)
    return [*lines, line + after]
