"""The words that paths and identifiers must not use, since the field has better ones.

`python -m tests.support.names PATH ...` prints what it finds in files or folders.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.support.source_tree import EXEMPT

WORDS = {
    "seam": "prompt_boundary, install",
    "seams": "prompt_boundary",
    "told": "reported, expected",
    "said": "message, printed",
    "asked": "requested, prompt",
    "glance": "check_shape",
    "glances": "shape_checks",
    "hear": "receive",
    "heard": "received",
    "settle": "resolve",
    "settled": "resolved",
    "remark": "warning",
    "remarks": "warnings",
    "wishes": "options",
    "sibling": "process",
    "siblings": "processes",
    "stretch": "window",
    "rehearse": "simulate, dry_run",
    "rehearsed": "simulated",
    "rehearsal": "dry_run",
    "remedy": "advice",
    "remedies": "advice",
    "journal": "metrics_log",
    "undisturbed": "preserving_rng",
    "deafen": "ignore_signals",
    "anchor": "expected_results",
    "anchored": "compared",
    "theirs": "name what it holds",
    "eyes": "callbacks",
    "stand": "name what it holds",
    "ins": "name what it holds",
    "dear": "expensive",
    "unusual": "published_ranges",
    "foreign": "aliases",
    "kept": "cached, remaining",
    "pieces": "tokens",
    "meeting": "rendezvous",
    "wanted": "requested, required",
    "lost": "dropped",
    "taken": "downloaded",
    "thinned": "subsampled",
}
LOCALS = {"found", "told", "said", "each", "more", "theirs", "ours", "asked", "somebody", "whole"}
"""Complete variable names that hold nothing but grammar."""
ALLOWED = {"allow_unusual", "checkpoints_kept", "siblings"}
"""A parameter that a flag names, a key of --json, and an attribute of huggingface_hub."""


_WORD = re.compile(r"[^\W\d]\w*")


def words_of(identifier: str) -> list[str]:
    """The words of a snake_case or CamelCase identifier, in lower case."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier)
    return [word for word in spaced.lower().split("_") if word]


def problems_in(identifier: str) -> Iterator[str]:
    if identifier in LOCALS:
        yield f"{identifier!r}: name what it holds"
    for word in words_of(identifier):
        if word in WORDS and identifier not in ALLOWED:
            yield f"{identifier!r}: {WORDS[word]}"


def findings(path: Path) -> list[str]:
    """List `file:line: 'identifier': better words`, once per identifier and file."""
    if path.as_posix().endswith(EXEMPT):
        return []
    lines: dict[str, int] = {}
    for part in path.with_suffix("").parts:
        lines.setdefault(part, 0)
    source = path.read_text("utf-8")
    # To tokenize takes longer than all else, and few files have one of the words.
    if any(any(problems_in(word)) for word in set(_WORD.findall(source))):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                lines.setdefault(token.string, token.start[0])
    return [f"{path}:{line}: {p}" for name, line in lines.items() for p in problems_in(name)]


if __name__ == "__main__":
    paths = [p for arg in sys.argv[1:] for p in sorted(Path(arg).rglob("*.py")) or [Path(arg)]]
    found = [line for path in paths for line in findings(path)]
    print(*found, f"{len(found)} findings", sep="\n")
