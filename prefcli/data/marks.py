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
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from prefcli.data.tokens import Frame, Ids, sides_of
from prefcli.methods import Method

Fault = Literal["bos", "no_end"]


@dataclass(frozen=True)
class Meaning:
    """What a fault says of a row, and what to do about it."""

    message: str
    hint: str


MEANINGS: Mapping[Fault, Meaning] = {
    "bos": Meaning(
        "the row does not begin with exactly one BOS token",
        "two: the text holds one and the tokenizer adds its own, so take it out of the text; none: "
        "let the chat template begin with {{ bos_token }}, as the tokenizer begins every text",
    ),
    "no_end": Meaning(
        "the completion does not end with a token at which generation stops",
        "let the chat template end an answer with the end token (inside {% generation %}, if that "
        "is there); or name the token it writes in eos_token_id of the generation_config.json",
    ),
}

# As vocabularies spell a space and line ends: as they are, SentencePiece's way, byte-level BPE's.
_SPACES = frozenset(" \t\n\r▁ĠĊĉč")
_SPACE_BYTES = {"<0x09>", "<0x0A>", "<0x0D>", "<0x20>"}


@dataclass(frozen=True)
class Marks:
    """What is looked for in every row; made once for all rows of a split."""

    frame: Frame
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
    ) -> Marks:
        return cls(Frame.of(tokenizer, method, chat=chat), ends, _blanks(tokenizer))

    def faults(
        self, ids: dict[str, Any], max_length: int, trained: Sequence[int] | None = None
    ) -> set[Fault]:
        """Of a row as `tokenise` makes it; a completion that is cut at max_length may lack its end.

        trained: a mask over prompt and completion, where only marked tokens of them are trained.
        """
        ids = self.frame.around(ids)
        prompt = ids["prompt_ids"]
        found: set[Fault] = set()
        for side in sides_of(ids).values():
            if not self._begins_well(prompt, side):
                found.add("bos")
            if len(prompt) + len(side) <= max_length and not self._stops(prompt, side, trained):
                found.add("no_end")
        return found

    def _begins_well(self, prompt: Ids, side: Ids) -> bool:
        """Where the tokenizer puts no BOS before text, none is as right as one.

        Qwen never has one, and SmolLM's, the <|im_start|> of its turns, comes in messages alone.
        """
        bos = self.frame.bos
        if bos is None:
            return True
        # Only the head counts: the end token may be the same, and Llama 2 begins each turn anew.
        leading = sum(1 for _ in takewhile(bos.__eq__, chain(prompt, side)))
        return leading == 1 or (leading == 0 and not self.frame.prepended)

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
