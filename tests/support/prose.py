"""A word list that keeps messages, docstrings, comments and pages in plain English.

`python -m tests.support.prose PATH ...` prints what it finds in files or folders.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.support.source_tree import EXEMPT

PHRASES = {
    r"\b(told|tells|tell)\b": "report, print, show, say which",
    r"\b(goes|go|going|went|gone) on\b": "continue, resume",
    r"\b(lie|lies|lying) (on|in|at|there|beside)\b": "is in, is on",
    r"\b(leave|leaves|leaving|left) out\b": "omit, skip, drop, default",
    r"\botherwise than\b": "differently from",
    r"\balike\b": "equal, the same, both",
    r"\banew\b": "again",
    r"\bof (which|whom|whose)\b": "whose, that has",
    r"\bfor want of\b": "without, for lack of",
    r"(?<!there )(?<!There )\b(is|are|was|were) no (?!longer|more|such|way|one)\w+": "is not a",
    r"\b(dear|dearest)\b": "expensive",
    r"\bas by (its|the)\b": "matches",
    r"\b(heard|hears|hear)\b": "receive, notice",
    r"\b(unasked|unread as)\b": "by default",
    r"\b(put|puts|putting) right\b": "fix",
    r"\b(mend|mends|mended)\b": "fix",
    r"\bpre-?empted by whoever\b": "preempted",
    r"\bpre-empt": "preempt",
    r"\bto speak of\b": "significant",
    r"\b(no|any) news\b": "expected",
    r"\bin words\b": "as text",
    r"\b(beside)\b": "next to, with, compared with",
    r"\b(whoever|whomever|nobody)\b": "no one, the user, anyone",
    r"\b(is|are|was|were) due\b": "expected",
    r"\b(comes?|came|coming) out\b": "results in, gives, is",
    r"\b(a|an) (bug of ours|trainer of ours)\b": "a bug in prefcli",
    r"\bof (ours|theirs|its own|mine|hers)\b": "our, their, its",
    r"\b(stands|stood|stand) (in|there|for itself|at|still|above|below|on)\b": "is in",
    r"\bthe word\b": "",
    r"\b(lest|hence|thereof|whereof|therein|withal|ere|whence|hither)\b": "so that, so",
    r"\bput(s)? (beside|back into)\b": "compare with",
    r"\b(tokens?|nats?|rows?|seconds?|epochs?|steps?|GiB|MiB|lines?|times|pairs?|labels?) "
    r"an? (token|step|second|epoch|device|GPU|row|pair|process|layer|label|day|run)\b": "per",
    r"\b(would have it|has its say|make room|makes room)\b": "",
    r"\b(cheap|cheapest) to\b": "cheapest first",
    r"\bat all that\b": "everything that",
    r"\b(knows?|known) (nothing|no \w+) of\b": "does not know",
    r"\b(speaks?|spoke|spoken)\b": "print, log, write",
    r"\bso (many|much) as\b": "as many as",
    r"\b(ought|nought|naught)\b": "should",
    r"\bby way of\b": "through",
    r"\b(makes? up for|made up for)\b": "runs later",
    r"\b(nevertheless|notwithstanding)\b": "still, even so",
    r"\bwhat (cannot|can't|is not|isn't) be\b": "anything that",
    r"\b(took|taken|take|takes) (along|away from)\b": "",
    r"\b(look|looks|looked|looking) (at|for) all\b": "check everything",
    r"\bis (?:to be )?(?:looked at)\b": "is checked",
    r"\b(likelier)\b": "more likely",
    r"\b(rehears(e|es|ed|al))\b": "simulate, dry-run",
    r"\b(remark|remarks)\b": "warning, note",
    r"\b(fellows?|siblings?)\b": "the other processes",
    r"\b(wishes|wished)\b": "options",
    r"\bthumbs\b": "single responses labelled good or bad",
}
OPENINGS = re.compile(
    r"^(Of|As|What|That|Whether|Where|Who|Whom|Whose|No|None|For|So|By|Up|From|With|Without|Once|"
    r"There|Here|Only|Not|It|Its|And|But|To|When|If|Until|After|Before) "
)
"""Words that a docstring must not open with."""
KEY = "siblings"
"""A key in the answers of the hub."""
_PATTERNS = [(re.compile(p, re.IGNORECASE), hint) for p, hint in PHRASES.items()]


@functools.cache
def problems_in(text: str) -> list[tuple[str, str]]:
    """(phrase, advice) for each banned phrase."""
    return [(match[0], hint) for pattern, hint in _PATTERNS for match in pattern.finditer(text)]


def _python(path: Path) -> Iterator[tuple[int, str, str]]:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text and (match := OPENINGS.match(text)):
                line = node.body[0].lineno
                yield line, f"docstring opens with {match[1]!r}", "a verb or a noun phrase"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != KEY:
            for phrase, hint in problems_in(node.value):
                yield node.lineno, phrase, hint
    # To tokenize takes longer than all else, and few lines with a # have a phrase.
    if any(problems_in(line) for line in source.splitlines() if "#" in line):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                for phrase, hint in problems_in(token.string):
                    yield token.start[0], phrase, hint


def _text(path: Path) -> Iterator[tuple[int, str, str]]:
    fenced = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        text = line
        if path.suffix in (".yaml", ".sh", ".toml"):
            text = line.partition("#")[2]
        elif fenced:
            continue
        elif path.suffix == ".md":
            text = re.sub(r"`[^`]*`", "", line)  # names in code are those of the code
        for phrase, hint in problems_in(text):
            yield number, phrase, hint


def findings(path: Path) -> list[str]:
    """List `file:line: phrase -> advice` for each banned phrase in a file."""
    if path.as_posix().endswith(EXEMPT):
        return []
    read = _python if path.suffix == ".py" else _text
    return [f"{path}:{line}: {phrase!r} -> {hint}" for line, phrase, hint in sorted(read(path))]


def files(root: Path) -> list[Path]:
    """Every file under a folder, or the file itself, that people read."""
    if root.is_file():
        return [root]
    kinds = (".py", ".md", ".yaml", ".sh", ".html", ".jinja", ".toml")
    return sorted(p for p in root.rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts)


if __name__ == "__main__":
    found = [line for arg in sys.argv[1:] for path in files(Path(arg)) for line in findings(path)]
    print(*found, f"{len(found)} findings", sep="\n")
