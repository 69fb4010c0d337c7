"""Does a row begin as the model knows texts to begin, and is the model taught to stop?

A row ends well where the last of its trained tokens, whitespace aside, is one at which generation
stops. Whitespace does no harm there: ChatML's templates write <|im_end|> and a line end, and a
model that has written <|im_end|> is not asked for more. Of a conversation, the last trained turn
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedTokenizerBase

from prefcli.data.tokenization import Ids, SpecialTokens, sides_of
from prefcli.methods import Method

Fault = Literal["no_bos", "two_bos", "no_end"]
"""Findings of `data.checks`, which has the words for them."""


# As vocabularies spell a space and line ends: as they are, SentencePiece's way, byte-level BPE's.
_SPACES = frozenset(" \t\n\r▁ĠĊĉč")
_SPACE_BYTES = {"<0x09>", "<0x0A>", "<0x0D>", "<0x20>"}


@dataclass(frozen=True)
class SpecialTokenCheck:
    """What is looked for in every row; made once for all rows of a split."""

    frame: SpecialTokens
    ends: frozenset[int]
    """Ids at which the model stops writing."""
    blanks: frozenset[int]
    """Ids that are nothing but whitespace."""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        method: Method,
        *,
        chat: bool,
    ) -> SpecialTokenCheck:
        return cls(SpecialTokens.of(tokenizer, method, chat=chat), ends, _blanks(tokenizer))

    names: ClassVar[tuple[str, ...]] = get_args(Fault)

    def __call__(
        self, ids: Mapping[str, Any], room: int, trained: Sequence[int] | None = None
    ) -> set[Fault]:
        """See RowCheck. A completion that is cut may lack its end."""
        ids = self.frame.around(dict(ids))
        prompt = ids["prompt_ids"]
        found: set[Fault] = set()
        for side in sides_of(ids).values():
            if (fault := self._beginning(prompt, side)) is not None:
                found.add(fault)
            if len(prompt) + len(side) <= room and not self._stops(prompt, side, trained):
                found.add("no_end")
        return found

    def _beginning(self, prompt: Ids, side: Ids) -> Fault | None:
        """Where the tokenizer puts no BOS before text, none is as right as one.

        Qwen never has one, and SmolLM's, the <|im_start|> of its turns, comes in messages alone.
        """
        bos = self.frame.bos
        if bos is None:
            return None
        # Only the head counts: the end token may be the same, and Llama 2 begins each turn anew.
        leading = sum(1 for _ in takewhile(bos.__eq__, chain(prompt, side)))
        if leading > 1:
            return "two_bos"
        return "no_bos" if leading == 0 and self.frame.prepended else None

    def _stops(self, prompt: Ids, side: Ids, trained: Sequence[int] | None) -> bool:
        learned: Sequence[int] = side
        if trained is not None:
            learned = [i for i, on in zip(prompt + side, trained, strict=True) if on]
        for token in reversed(learned):
            if token in self.ends or token not in self.blanks:
                return token in self.ends
        return False


def _blanks(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    maybe = [
        number
        for piece, number in tokenizer.get_vocab().items()
        if piece in _SPACE_BYTES or _SPACES.issuperset(piece)
    ]
    # In a vocabulary that is not byte-level, those letters are letters.
    return frozenset(i for i in maybe if not tokenizer.decode([i]).strip())
