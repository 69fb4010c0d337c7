"""One row as the model is trained on it: its tokens, which of them are trained, where it is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.data.token_text import TokenText
from prefcli.data.tokenization import (
    Ids,
    SpecialTokens,
    assistant_masks,
    is_chat,
    prompt_alone,
    sides_of,
    tokenize,
)
from prefcli.methods import Method

_WIDTH = 100
_FIRST, _LAST = 8, 16
_MOST_SPANS = 6


@dataclass(frozen=True)
class Token:
    text: str
    """Readable, as Pieces has it."""
    id: int
    trained: bool
    """A target of the loss. (The first token of all never is, whatever its label says.)"""


@dataclass(frozen=True)
class Part:
    """The prompt, or a completion, as far as max_length lets it in."""

    tokens: Sequence[Token]
    cut: int = 0
    """Tokens beyond max_length."""


@dataclass(frozen=True)
class PromptBoundary:
    """Tokens that the prompt ends with alone, and what stands there beside each completion."""

    alone: Sequence[str]
    beside: Mapping[str, Sequence[str]]

    def in_words(self) -> str:
        alone, beside = _barred(self.alone), {s: _barred(t) for s, t in self.beside.items()}
        if len(set(beside.values())) == 1:
            found = f"the completion {next(iter(beside.values()))}"
        else:
            found = ", beside ".join(f"{side} {tokens}" for side, tokens in beside.items())
        return f"the prompt alone ends {alone}, beside {found}"


@dataclass(frozen=True)
class RowView:
    place: str
    max_length: int
    parts: Mapping[str, Part]
    seam: PromptBoundary | None
    prompt_why: str = ""
    """What trains the prompt, where only one term of the loss does."""

    def lines(self) -> list[str]:
        """For a log without colour: |one|token|between|bars|, long ones without their middle."""
        found = [f"tokens: {self.place}"]
        labelled = []
        for name, part in self.parts.items():
            labelled += self._spans(name, part)
        column = max((len(label) for label, _, _ in labelled), default=0)
        for label, items, after in labelled:
            found += _wrapped(f"  {label:<{column}}  ", items, after)
        if self.seam is not None:
            found.append(f"  seam: {self.seam.in_words()}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Tokens as [text, id, trained]."""
        seam = self.seam
        return {
            "place": self.place,
            "max_length": self.max_length,
            "parts": {
                name: {"tokens": [[t.text, t.id, t.trained] for t in part.tokens], "cut": part.cut}
                for name, part in self.parts.items()
            },
            "seam": None
            if seam is None
            else {
                "alone": list(seam.alone),
                "beside": {side: list(tokens) for side, tokens in seam.beside.items()},
            },
        }

    def _spans(self, name: str, part: Part) -> list[tuple[str, list[str], str]]:
        """(label, tokens, what comes after them) of each run of trained or untrained tokens."""
        runs = [(on, [t.text for t in run]) for on, run in groupby(part.tokens, _is_trained)]
        spans = []
        for at, (on, texts) in enumerate(runs or [(False, [])]):
            why = f" {self.prompt_why}" if on and name == "prompt" and self.prompt_why else ""
            how = f"trained{why}" if on else "not trained"
            label = f"{name if at == 0 else '':<10} {_count(len(texts))}, {how}:"
            spans.append((label, texts, ""))
        if part.cut:
            label, texts, _ = spans[-1]
            after = f" ... cut here at {self.max_length}; {_count(part.cut)} more"
            spans[-1] = (label, texts, after)
        if len(spans) > _MOST_SPANS:
            half = _MOST_SPANS // 2
            between = f"{'':<10} ({len(spans) - 2 * half} more such parts)"
            spans = [*spans[:half], (between, [], ""), *spans[-half:]]
        return spans


def view(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    max_length: int,
    place: str,
) -> RowView:
    """row: a canonical one, without the columns that say where it came from.

    With assistant_only_loss, the tokenizer is one whose chat template marks assistant turns.
    """
    chat = is_chat(row)
    ids = SpecialTokens.of(tokenizer, method, chat=chat).around(tokenize(row, tokenizer))
    prompt, sides = ids["prompt_ids"], sides_of(ids)
    prompt_trained = method.trainer.sft_term_scope == "text" or method.trains_prompt
    columns = {name: [value] for name, value in row.items()}
    masks = assistant_masks(columns, tokenizer) if method.assistant_only else None
    marked = masks[0] if masks else None
    pieces = TokenText(tokenizer)
    parts = {}
    if prompt:
        mask = [prompt_trained] * len(prompt)
        if marked is not None:
            mask = [on and bool(m) for on, m in zip(mask, marked, strict=False)]
        parts["prompt"] = _part(prompt, mask, max_length, pieces)
    for side, tokens in sides.items():
        mask = [bool(m) for m in marked[len(prompt) :]] if marked else [True] * len(tokens)
        name = next((whole for whole in ("messages", "text") if whole in row), side)
        parts[name] = _part(tokens, mask, max_length - len(prompt), pieces)
    return RowView(
        place,
        max_length,
        parts,
        prompt_boundary(row, tokenizer),
        "by the SFT term alone" if method.trainer.sft_term_scope == "text" else "",
    )


def prompt_boundary(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PromptBoundary | None:
    """Where the prompt's last tokens come out differently beside the completion; None where not."""
    ids = tokenize(row, tokenizer)
    if not ids["seam"]:
        return None
    pieces = TokenText(tokenizer)
    alone = prompt_alone(row, tokenizer)[-ids["seam"] :]
    reach = sum(len(pieces.raw(i)) for i in alone)
    return PromptBoundary(
        [pieces.text(i) for i in alone],
        {
            side: [pieces.text(i) for i in _covering(tokens, reach, pieces)]
            for side, tokens in sides_of(ids).items()
        },
    )


def _covering(tokens: Ids, reach: int, pieces: TokenText) -> Ids:
    """The first tokens, until they hold as many bytes."""
    taken: Ids = []
    for token in tokens:
        if reach <= 0:
            break
        taken.append(token)
        reach -= len(pieces.raw(token))
    return taken


def _part(tokens: Ids, mask: Sequence[bool], room: int, pieces: TokenText) -> Part:
    room = max(room, 0)
    kept = zip(tokens[:room], mask[:room], strict=True)
    return Part([Token(pieces.text(i), i, on) for i, on in kept], max(len(tokens) - room, 0))


def _is_trained(token: Token) -> bool:
    return token.trained


def _count(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def _shortened(texts: Sequence[str]) -> list[str]:
    """Both ends; the end more of it, as that is where a row goes wrong."""
    left_out = len(texts) - _FIRST - _LAST
    if left_out <= 1:
        return list(texts)
    return [*texts[:_FIRST], f" ... {left_out} more ... ", *texts[-_LAST:]]


def _barred(texts: Sequence[str]) -> str:
    return f"|{'|'.join(_shortened(texts))}|"


def _wrapped(start: str, texts: Sequence[str], after: str) -> list[str]:
    """Lines of about 100 columns that break between tokens, under their label."""
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
