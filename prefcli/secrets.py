"""Recognises access tokens and passwords, and removes them from text.

It is the last line of defence: recipes and command lines that contain a secret are refused first,
and all free text that is printed or saved passes `redact`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

HIDDEN = "(hidden)"


class Kind(NamedTuple):
    """One form of a secret. The group `secret` is the part to hide, by default the whole match."""

    what: str
    pattern: str


_START = r"(?<![A-Za-z0-9])"
KINDS = (
    Kind("Hugging Face", _START + r"hf_[A-Za-z0-9]{16,}"),
    Kind("OpenAI, Anthropic", _START + r"sk-[A-Za-z0-9_-]{20,}"),
    Kind("GitHub", _START + r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    Kind("GitLab", _START + r"glpat-[A-Za-z0-9_-]{16,}"),
    Kind("AWS", _START + r"A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    Kind("wandb", _START + r"(?:local-[0-9a-f]{40}|wandb_v[0-9]_[A-Za-z0-9_]{20,})"),
    Kind("NVIDIA", _START + r"nvapi-[A-Za-z0-9_-]{20,}"),
    Kind("Slack", _START + r"xox[abprs]-[A-Za-z0-9-]{10,}"),
    Kind("a web token", _START + r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}[A-Za-z0-9_.-]*"),
    Kind("in a header", r"(?i:\bbearer\s+)(?P<secret>[A-Za-z0-9._~+/-]{16,})"),
    Kind(
        "in an address",
        r"://(?P<secret>[^\s/@:\"'<>]*:[^\s/@\"'<>]+|[A-Za-z0-9_-]{20,})@",
    ),
    Kind(
        "in a query",
        r"(?i:[?&](?:[a-z0-9_-]*(?:token|signature|credential|secret|password)|sig|key|"
        r"api_?key)=)(?P<secret>[^\s&#\"'<>]+)",
    ),
    Kind(
        # wandb keys, for example, look like commit hashes without their name.
        "behind a name",
        r"(?i:(?:key|token|secret|passw(?:or)?d)[\"']?\s*[=:]\s*[\"']?)"
        r"(?P<secret>[0-9a-f]{32,})(?![0-9A-Za-z])",
    ),
)
_PATTERNS = tuple(re.compile(kind.pattern) for kind in KINDS)

_NAME = re.compile(
    r"(?:^|_)(?:TOKENS?|API_?KEYS?|KEYS?|SECRETS?|PASS(?:WD|WORD|PHRASE)|CREDENTIALS?)(?:_|$)"
)
_NO_SECRET = re.compile(r"_(?:PATH|FILE|DIR|URL|NAME|SOCK|TYPE)$")
_SHORTEST, _SURELY = 8, 12
"""Minimum lengths, in characters. A shorter environment value may be an ordinary word."""


def is_secret(text: str) -> bool:
    """Return whether text contains a token by its form, or the value of a secret variable."""
    return any(_spans(text, _SURELY))


def redact(text: str) -> str:
    """Replace every secret in text; JSON stays valid JSON."""
    for start, end in sorted(_merged(_spans(text, _SHORTEST)), reverse=True):
        text = text[:start] + HIDDEN + text[end:]
    return text


def clean(value: Any) -> Any:
    """Redact every string inside plain data."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


@functools.cache
def holds_secret(name: str) -> bool:
    """Return whether an environment variable of this name usually holds a secret."""
    return bool(_NAME.search(name.upper())) and not _NO_SECRET.search(name.upper())


def _spans(text: str, shortest: int) -> Iterator[tuple[int, int]]:
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            yield match.span("secret" if "secret" in pattern.groupindex else 0)
    for name in filter(holds_secret, os.environ):
        value = os.environ[name]
        at = text.find(value) if len(value) >= shortest else -1
        while at >= 0:
            yield at, at + len(value)
            at = text.find(value, at + len(value))


def _merged(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
