"""The rules of a translation: a key is renamed, dropped, refused, or translated with others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from prefcli.methods import METHODS
from prefcli.recipe.migrate.draft import Draft


def is_on(value: Any) -> bool:
    """Return whether a value enables something: not null, false, zero, empty, `no` or `off`."""
    off = ("no", "off", "none", "false", "")
    return bool(value) and not (isinstance(value, str) and value.lower() in off)


def word_list(value: Any) -> list[str] | None:
    """Return a list of strings, also from a comma-separated string; None for anything else."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    return [word.strip() for word in words]


class Rule(ABC):
    """Translates a key."""

    paths: tuple[str, ...] = ()
    """The paths of a recipe that its value may be written to."""
    methods: frozenset[str] | None = None
    """The methods whose sections it may be written to; None if it belongs to no method."""

    @abstractmethod
    def apply(self, draft: Draft, key: str) -> None: ...


class Rename(Rule):
    """Writes the value to a path; with several paths, to the one in the method's section.

    read: converts the value, or returns None if it is off.
    """

    def __init__(self, *paths: str, read: Callable[[Any], Any] = lambda value: value) -> None:
        self.paths = paths
        self.read = read
        sections = {path.partition(".")[0] for path in paths}
        self.methods = frozenset(sections) if sections <= METHODS.keys() else None

    def apply(self, draft: Draft, key: str) -> None:
        if self.methods is not None and draft.method not in self.methods:
            draft.refuse(
                key,
                f"{draft.method} has no such setting",
                code="RCP158",
                hint=f"remove it, or pass --method {'|'.join(sorted(self.methods))}",
            )
            return
        of_method = [path for path in self.paths if path.startswith(f"{draft.method}.")]
        value = self.read(draft.value(key))
        if value is None:
            draft.drop(key, "it is off")
        else:
            draft.put((of_method or self.paths)[0], value, key)


def switch(path: str, on: Any, off: Any = None) -> Rename:
    """Return the rule of a switch, which writes `on` to a path, or `off` unless that is None."""
    return Rename(path, read=lambda value: on if is_on(value) else off)


class Drop(Rule):
    """Drops the key, whatever its value; `note` is for the reader of a recipe where it was on."""

    def __init__(self, reason: str, note: str | None = None) -> None:
        self.reason, self.note = reason, note

    def apply(self, draft: Draft, key: str) -> None:
        draft.drop(key, self.reason)
        if self.note and is_on(draft.given(key)):
            draft.note(f"{draft.name(key)}: {self.note}")


class Refuse(Rule):
    """Refuses a key that changes training and that prefcli has no setting for.

    Harmless values are dropped; by default those that disable the feature.
    """

    def __init__(self, reason: str, hint: str = "", *, harmless: tuple[Any, ...] = ()) -> None:
        self.reason, self.harmless = reason, harmless
        self.hint = hint or "remove it if the run does not need it"

    def apply(self, draft: Draft, key: str) -> None:
        value = draft.given(key)
        if value in self.harmless:
            draft.drop(key, "prefcli always does this")
        elif not self.harmless and not is_on(value):
            draft.drop(key, "it is off")
        else:
            draft.refuse(key, self.reason, code="RCP156", hint=self.hint)


class Together(Rule):
    """Several keys that only have a meaning together; applied once, after the single keys.

    otherwise: why those keys are dropped that `translate` has no use for.
    """

    def __init__(self, translate: Callable[[Draft], None], otherwise: str) -> None:
        self.translate, self.otherwise = translate, otherwise

    def apply(self, draft: Draft, key: str) -> None:
        if key not in draft.handled and self.otherwise:
            draft.drop(key, self.otherwise)


RuleTable = Mapping[str, Rule]


class RuleBook(dict[str, Rule]):
    """The rules of some keys, which a module adds to next to the functions that translate them."""

    def together(
        self, keys: str, otherwise: str = ""
    ) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
        """Register a function for several keys; see Together."""

        def register(translate: Callable[[Draft], None]) -> Callable[[Draft], None]:
            self.update(dict.fromkeys(keys.split(), Together(translate, otherwise)))
            return translate

        return register


def refuse_unknown(draft: Draft, key: str, *inside: str | int) -> None:
    """Refuse a key that no rule is for."""
    hint = "remove it if the run does not need it, or report it as missing"
    draft.refuse(key, "prefcli migrate does not know this key", *inside, code="RCP155", hint=hint)


def apply_rules(draft: Draft, table: RuleTable) -> None:
    """Translate every key of the file, so that each is written, dropped or refused."""
    for key in [*draft.data, *(k for k in draft.defaults if k not in draft.data)]:
        rule = table.get(key)
        if isinstance(rule, Together):
            continue
        if draft.value(key) is None:
            draft.drop(key, "it is not set")
        elif rule is None:
            refuse_unknown(draft, key)
        else:
            rule.apply(draft, key)
    for together in dict.fromkeys(rule for rule in table.values() if isinstance(rule, Together)):
        together.translate(draft)
    for key, rule in table.items():
        if isinstance(rule, Together):
            rule.apply(draft, key)
    for key, value in draft.data.items():
        if key not in draft.handled and not is_on(value):
            draft.drop(key, "it is not set" if value is None else "it is off")
        elif key not in draft.handled:
            message = f"it has no effect on {draft.method} with the other keys"
            draft.refuse(key, message, code="RCP158", hint="remove it")
