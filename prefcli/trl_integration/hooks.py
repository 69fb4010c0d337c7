"""Private names of other libraries that prefcli relies on: checks and patches."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from prefcli.errors import Problem, RecipeError

_MISSING = object()


class Hook(NamedTuple):
    """A private name, and what prefcli assumes about it."""

    path: str
    """Module and attributes: transformers.trainer.Trainer._run_epoch."""
    parameters: tuple[str, ...] | None = None
    """First parameters of a function, in order; None for anything that is not called."""
    set_by: str | None = None
    """Function that sets the attribute on an instance, such as `__init__`."""

    def problem(self) -> str | None:
        """Describe how the installed library differs; None if it matches."""
        owner, _, name = self.path.rpartition(".")
        resolved = resolve(owner)
        if self.set_by is not None:
            setter = getattr(resolved, self.set_by, None)
            names = inspect.unwrap(setter).__code__.co_names if setter is not None else ()
            return None if name in names else f"{self.path} is no longer set"
        target: Any = getattr(resolved, name, _MISSING)
        if target is _MISSING:
            return f"{self.path} does not exist"
        if self.parameters is None:
            return None
        parameters = tuple(inspect.signature(target).parameters)
        if parameters[: len(self.parameters)] == self.parameters:
            return None
        return f"{self.path} takes ({', '.join(parameters)})"


def resolve(path: str) -> Any:
    """Import the object at a dotted path; `None` if it does not exist."""
    module, rest = path, list[str]()
    while module:
        try:
            resolved: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            rest.insert(0, name)
            continue
        for name in rest:
            resolved = getattr(resolved, name, None)
        return resolved
    return None


def check_hooks(hooks: Iterable[Hook]) -> None:
    """Raise RecipeError if a private name is missing or has another signature."""
    problems = [problem for hook in hooks if (problem := hook.problem()) is not None]
    if problems:
        raise RecipeError(
            Problem(
                f"prefcli does not support the installed libraries: {'; '.join(problems)}",
                hint="install the versions that prefcli was tested with: "
                "pip install prefcli -c constraints.txt",
                code="TRN060",
            )
        )


@contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a module or class until the block ends."""
    inherited = name not in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
