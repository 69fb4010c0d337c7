"""BOS at the start of a row and EOS at its end: who adds them, and whether they are right.

A row ends correctly if its last trained token, apart from whitespace, is a stop token. Whitespace
after it is harmless: ChatML templates write <|im_end|> and a line end, and generation stops at
<|im_end|>. In a conversation, the last trained turn counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedTokenizerBase

from prefcli.data.tokenization import Ids, sides_of
from prefcli.methods import Method

Fault = Literal["no_bos", "two_bos", "no_end"]
"""Findings of `data.checks`, which explains them."""

# How vocabularies spell a space and line ends: literally, in SentencePiece, in byte-level BPE.
_SPACES = frozenset(" \t\n\r▁ĠĊĉč")
_HEADER_CURE = (
    "generation stops at {0}, which begins the turn after an answer and which the chat template "
    "does not write after the last one: write {0} there in model.chat_template"
)
_SPACE_BYTES = {"<0x09>", "<0x0A>", "<0x0D>", "<0x20>"}


@dataclass(frozen=True)
class SpecialTokens:
    """The BOS and EOS of a row, and whether tokenizer, chat template or trl adds them."""

    bos: int | None
    eos: int
    prepended: bool
    """The tokenizer prepends its BOS to text. It does not to rendered messages."""
    by_trl: bool
    chat: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, method: Method, *, chat: bool) -> SpecialTokens:
        bos = tokenizer.bos_token_id
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        prepended = bos is not None and tokenizer("a")["input_ids"][:1] == [bos] != bare[:1]
        return cls(bos, tokenizer.eos_token_id, prepended, method.trainer.adds_special_tokens, chat)

    def around(self, ids: dict[str, Any]) -> dict[str, Any]:
        """Add what trl's trainer adds to a tokenized row.

        If the prompt merges with one side only, trl's ORPO and CPO count the prompt's last token
        as prompt for the other side; here it is completion for both.
        """
        if not self.by_trl:
            return ids
        prompt, sides = ids["prompt_ids"], sides_of(ids)
        if self.bos is not None:
            # These trainers tokenize without special tokens and look for a BOS in the text.
            if self.prepended and not self.chat and prompt[:2] == [self.bos, self.bos]:
                prompt = prompt[1:]
            if prompt[:1] != [self.bos]:
                prompt = [self.bos, *prompt]
        completions = {
            f"{side}_ids": tokens if tokens[-1:] == [self.eos] else [*tokens, self.eos]
            for side, tokens in sides.items()
        }
        return {**ids, "prompt_ids": prompt, **completions}


@dataclass(frozen=True)
class SpecialTokenCheck:
    """A RowCheck of BOS and stop tokens, built once for all rows of a split."""

    special: SpecialTokens
    stop_ids: frozenset[int]
    """Ids at which generation stops."""
    blanks: frozenset[int]
    """Ids of whitespace tokens."""
    cures: Mapping[str, str] = field(default_factory=dict)
    names: ClassVar[tuple[str, ...]] = get_args(Fault)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        method: Method,
        *,
        chat: bool,
    ) -> SpecialTokenCheck:
        special = SpecialTokens.of(tokenizer, method, chat=chat)
        blanks = _whitespace_ids(tokenizer)
        header = _stop_in_header(tokenizer, stop_ids, blanks) if chat else None
        cures = {} if header is None else {"no_end": _HEADER_CURE.format(header)}
        return cls(special, stop_ids, blanks, cures)

    def __call__(
        self, ids: Mapping[str, Any], room: int, trained: Sequence[int] | None = None
    ) -> set[Fault]:
        """Return the faults of a row; see RowCheck. A completion that is cut may lack its end."""
        ids = self.special.around(dict(ids))
        prompt = ids["prompt_ids"]
        faults: set[Fault] = set()
        for side in sides_of(ids).values():
            if (fault := self._bos_fault(prompt, side)) is not None:
                faults.add(fault)
            if len(prompt) + len(side) <= room and not self._ends(prompt, side, trained):
                faults.add("no_end")
        return faults

    def _bos_fault(self, prompt: Ids, side: Ids) -> Fault | None:
        """Count the leading BOS tokens. None is right if the tokenizer does not prepend one.

        Qwen has no BOS, and SmolLM's, the <|im_start|> of its turns, occurs in messages only.
        """
        bos = self.special.bos
        if bos is None:
            return None
        # Count only at the start: the EOS may be the same token, and Llama 2 repeats its BOS in
        # each turn.
        leading = sum(1 for _ in takewhile(bos.__eq__, chain(prompt, side)))
        if leading > 1:
            return "two_bos"
        return "no_bos" if leading == 0 and self.special.prepended else None

    def _ends(self, prompt: Ids, side: Ids, trained: Sequence[int] | None) -> bool:
        learned: Sequence[int] = side
        if trained is not None:
            learned = [i for i, on in zip(prompt + side, trained, strict=True) if on]
        for token in reversed(learned):
            if token in self.stop_ids or token not in self.blanks:
                return token in self.stop_ids
        return False


def _stop_in_header(
    tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], blanks: frozenset[int]
) -> str | None:
    """Return the stop token with which the header of the turn after an answer begins, if it does.

    Some models end a turn at the next turn's header, such as <|user|>, and their templates write
    nothing after the last answer.
    """
    words = "prefcliquestion", "prefclianswer", "prefclireply"
    roles = "user", "assistant", "user"
    chat = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
        alone = str(tokenizer.apply_chat_template(chat[:2], tokenize=False))
    # A chat template is a program and may raise any exception.
    except Exception:
        return None
    between = text.partition(words[1])[2].partition(words[2])[0]
    after = alone.partition(words[1])[2]
    starts = []
    for part in (between, after):
        ids = tokenizer(part, add_special_tokens=False)["input_ids"]
        starts.append(next((i for i in ids if i not in blanks), None))
    first, last = starts
    if first not in stop_ids or first == last:
        return None
    return str(tokenizer.convert_ids_to_tokens(first))


def _whitespace_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    candidates = [
        token_id
        for token, token_id in tokenizer.get_vocab().items()
        if token in _SPACE_BYTES or _SPACES.issuperset(token)
    ]
    # In a vocabulary that is not byte-level, Ġ and its like are letters.
    return frozenset(i for i in candidates if not tokenizer.decode([i]).strip())
