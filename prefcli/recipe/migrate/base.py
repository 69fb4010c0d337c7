"""What a translation is: a key of another tool becomes a path of ours, goes, or is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.methods import METHODS
from prefcli.recipe.aliases import GONE
from prefcli.recipe.source_map import Key, Places, dotted

REMOTE_CODE = (
    "a model's own code runs only with a pinned commit, which the file does not name",
    "remove the line here; then set model.trust_remote_code and model.revision in the recipe",
)
"""Message and hint for trust_remote_code."""


@dataclass(frozen=True)
class Renamed:
    """A key whose name or value is another in the recipe."""

    key: str
    place: str
    path: str
    value: Any


@dataclass(frozen=True)
class Dropped:
    """A key that the recipe does not need."""

    key: str
    place: str
    reason: str


@dataclass
class Draft:
    """A recipe in the making, and what is to be said about it."""

    tool: str
    data: dict[str, Any]
    places: Places
    method: str
    devices: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the tool takes for keys that are not in the file, where prefcli takes another."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted path in the recipe: its value."""
    origins: dict[str, Key] = field(default_factory=dict)
    """Dotted path in the recipe: the key it came from."""
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)
    """The defaults that were needed."""
    remarks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    """Top-level keys of the file about which everything is said."""

    @property
    def folder(self) -> Path:
        return Path(self.places.source).parent

    def given(self, key: str) -> Any:
        """The file's value; None where it has none."""
        return self.data.get(key)

    def value(self, key: str) -> Any:
        """The file's value, or else the tool's default."""
        value = self.data.get(key)
        return self.defaults.get(key) if value is None else value

    def put(self, path: str, value: Any, key: str, *inside: str | int) -> None:
        """`path` of the recipe is `value`, which came from `key`, or a place inside it."""
        origin = (key, *inside)
        self.values[path] = value
        self.origins[path] = origin
        self.settled.add(key)
        if key not in self.data:
            self.assumed[key] = self.defaults.get(key, value)
        elif path.rpartition(".")[2] != key or value != self.data[key]:
            self.renamed.append(Renamed(dotted(origin), self.places.key(origin), path, value))

    def drop(self, key: str, reason: str, *inside: str | int) -> None:
        """Say why `key` is not needed; nothing is said of a key that the file does not have."""
        self.settled.add(key)
        if key in self.data:
            at = (key, *inside)
            self.dropped.append(Dropped(dotted(at), self.places.key(at), reason))

    def refuse(self, key: str, message: str, hint: str | None = None, *inside: str | int) -> None:
        self.settled.add(key)
        at = (key, *inside)
        self.problems.append(Problem(message, self.places.key(at), dotted(at), hint))

    def remark(self, text: str) -> None:
        """A line for whoever reads the recipe."""
        self.remarks.append(text)


class Translation(ABC):
    """What becomes of a key."""

    paths: tuple[str, ...] = ()
    """Where in a recipe its value may go."""
    of: frozenset[str] | None = None
    """The methods whose sections it may go to; None: no method's own."""

    @abstractmethod
    def apply(self, draft: Draft, key: str) -> None: ...


class To(Translation):
    """The value goes to a path; of several, to the one in the method's own section.

    `read` gives the value as prefcli has it, or raises ValueError with the reason why not.
    """

    def __init__(self, *paths: str, read: Callable[[Any], Any] | None = None) -> None:
        self.paths = paths
        self.read = read
        sections = {path.partition(".")[0] for path in paths}
        self.of = frozenset(sections) if sections <= METHODS.keys() else None

    def apply(self, draft: Draft, key: str) -> None:
        value = draft.value(key)
        if self.of is not None and draft.method not in self.of:
            draft.refuse(
                key,
                f"{draft.method} has no such setting",
                f"take it out, or is this for {' or '.join(sorted(self.of))}? Then pass --method",
            )
            return
        (path,) = (p for p in self.paths if self.of is None or p.startswith(f"{draft.method}."))
        try:
            draft.put(path, self.read(value) if self.read else value, key)
        except ValueError as error:
            draft.refuse(key, str(error))


class Drop(Translation):
    """prefcli does without it, whatever its value."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def apply(self, draft: Draft, key: str) -> None:
        draft.drop(key, self.reason)


class Refuse(Translation):
    """No counterpart, and it changes training: an error, unless the value is harmless.

    Without a list of harmless values those are harmless that turn the thing off.
    """

    def __init__(
        self, why: str, hint: str | None = None, *, harmless: tuple[Any, ...] = ()
    ) -> None:
        self.why, self.hint, self.harmless = why, hint, harmless

    def apply(self, draft: Draft, key: str) -> None:
        value = draft.given(key)
        if value in self.harmless:
            draft.drop(key, "it is so in prefcli anyway")
        elif not self.harmless and not is_on(value):
            draft.drop(key, "it is off")
        else:
            draft.refuse(key, self.why, self.hint or "take it out, if you can do without it")


class MultiKeyRule(Translation):
    """Several keys that mean something only together; translated once, after the plain keys."""

    def __init__(self, translate: Callable[[Draft], None], *paths: str) -> None:
        self.translate = translate
        self.paths = paths

    def apply(self, draft: Draft, key: str) -> None:
        raise AssertionError("translated once, by run()")


Table = Mapping[str, Translation]


def run(draft: Draft, table: Table) -> None:
    """Translate every key of the file; afterwards each is written, dropped or refused."""
    for key in [*draft.data, *(k for k in draft.defaults if k not in draft.data)]:
        translation = table.get(key)
        if translation is None:
            draft.refuse(key, "prefcli migrate does not know this key", "take it out, or report it")
        elif not isinstance(translation, MultiKeyRule):
            if draft.value(key) is None:
                draft.drop(key, "it is not set")
            else:
                translation.apply(draft, key)
    for joint in dict.fromkeys(t for t in table.values() if isinstance(t, MultiKeyRule)):
        joint.translate(draft)
    for key, value in draft.data.items():
        if key not in draft.settled and value is None:
            draft.drop(key, "it is not set")
        elif key not in draft.settled:
            draft.refuse(key, f"it has no meaning beside the other keys for {draft.method}")


def is_on(value: Any) -> bool:
    """Off are null, false, zero, nothing, and YAML 1.1's words for false."""
    return bool(value) and not (isinstance(value, str) and value.lower() in ("no", "off", "none"))


def words(value: Any) -> list[str] | None:
    """A list of texts, or text with commas between; None for anything else."""
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        return None
    return [word.strip() for word in listed]


def gone(key: str) -> str:
    """Why prefcli lacks a key, without what to write in a recipe instead."""
    return GONE[key].removesuffix("; leave it out")
