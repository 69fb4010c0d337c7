"""The text of a token, made readable for a log."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\"}


def _byte_level_letters() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE; printable bytes are their own letters."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_LETTERS = _byte_level_letters()


class TokenText:
    """The texts of a tokenizer's tokens. Decoding a single token would lose its leading space."""

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

    def raw(self, token_id: int) -> bytes:
        """Return the bytes of a token; several tokens may share one character."""
        if token_id in self._added:
            added: str = self._added[token_id]
            return added.encode()
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return f"[no token {token_id}]".encode()
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        if self._byte_level and all(letter in _LETTERS for letter in token):
            return bytes(_LETTERS[letter] for letter in token)
        return token.replace("▁", " ").encode()

    def text(self, token_id: int) -> str:
        """Escape the text: incomplete characters become <0x..>, special tokens get their id."""
        text = escape_text(self.raw(token_id).decode("utf-8", "surrogateescape"))
        return f"{text}={token_id}" if token_id in self._special else text


def escape_text(text: str) -> str:
    """Escape control characters and other invisible ones."""
    return "".join(map(_readable, text))


def _readable(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # how surrogateescape keeps a byte
        return f"<0x{ord(char) - 0xDC00:02X}>"
    if char in _ESCAPES:
        return _ESCAPES[char]
    return char if char.isprintable() else char.encode("unicode_escape").decode()
