"""The text of one token, as a reader of a log should see it."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\"}


def _byte_level_letters() -> dict[str, int]:
    """Byte-level BPE's letter for each byte: printable ones are themselves, others come after."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_LETTERS = _byte_level_letters()


class TokenText:
    """Tokens in a tokenizer's words. A lone token is not decoded: it would lose its space."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items()}
        self._special = set(tokenizer.all_special_ids) | {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = backend is not None and any(
            "ByteLevel" in repr(part) for part in (backend.decoder, backend.pre_tokenizer)
        )

    def raw(self, number: int) -> bytes:
        """The bytes that the token stands for; several tokens may share one character."""
        if number in self._added:
            added: str = self._added[number]
            return added.encode()
        piece: str | None = self._tokenizer.convert_ids_to_tokens(number)
        if piece is None:
            return f"[no token {number}]".encode()
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if self._byte_level and all(letter in _LETTERS for letter in piece):
            return bytes(_LETTERS[letter] for letter in piece)
        return piece.replace("▁", " ").encode()

    def text(self, number: int) -> str:
        """Escaped; bytes that are no whole character as <0x..>, special tokens with their id."""
        text = escape_text(self.raw(number).decode("utf-8", "surrogateescape"))
        return f"{text}={number}" if number in self._special else text


def escape_text(text: str) -> str:
    """For a log: control characters, and what else can't be seen, escaped."""
    return "".join(map(_readable, text))


def _readable(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # how surrogateescape keeps a byte
        return f"<0x{ord(char) - 0xDC00:02X}>"
    if char in _ESCAPES:
        return _ESCAPES[char]
    return char if char.isprintable() else char.encode("unicode_escape").decode()
