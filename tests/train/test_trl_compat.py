"""The private names of other libraries: present, complete, and patched without a trace."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import prefcli
from prefcli.errors import RecipeError
from prefcli.launcher.agent import HOOKS as LAUNCHER_HOOKS
from prefcli.trl_integration.hooks import Hook, check_hooks, patched, resolve
from prefcli.trl_integration.trl_compat import HOOKS

PACKAGE = Path(prefcli.__file__).parent
# Python's own, a tracker's, and one that is read with a default.
OTHERS = {"_commit_hash", "_replace", "_asdict", "_exit", "_run_exitfuncs", "_wandb", "_C", "_nn"}


class Base:
    def __init__(self):
        self._set = 1

    def method(self, first, second=2):
        return first, second


class Derived(Base):
    pass


HERE = f"{__name__}.Base."


def test_hooks_of_the_tested_versions_have_no_problem():
    check_hooks((*HOOKS, *LAUNCHER_HOOKS))


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (Hook(f"{HERE}method", ("self", "first")), None),
        (Hook(f"{HERE}method"), None),
        (Hook(f"{HERE}_set", set_by="__init__"), None),
        (Hook(f"{HERE}gone"), "does not exist"),
        (Hook("tests.no_such_module.name"), "does not exist"),
        (Hook(f"{HERE}method", ("self", "second")), "takes (self, first, second)"),
        (Hook(f"{HERE}_gone", set_by="__init__"), "no longer set"),
        (Hook(f"{HERE}_set", set_by="gone"), "no longer set"),
    ],
)
def test_hook_problem_describes_what_differs(hook, problem):
    actual = hook.problem()
    assert actual is None if problem is None else problem in actual


def test_check_hooks_reports_every_problem_with_a_code():
    with pytest.raises(RecipeError) as caught:
        check_hooks([Hook(f"{HERE}gone"), Hook(f"{HERE}method"), Hook(f"{HERE}away")])
    (problem,) = caught.value.problems
    assert problem.code == "TRN060"
    assert "Base.gone" in problem.message
    assert "Base.away" in problem.message


@pytest.mark.parametrize("owner", [Base, Derived])
def test_patched_restores_the_attribute_after_an_exception(owner):
    before = dict(vars(owner))
    with patched(owner, "method", lambda self: "patched"):
        assert owner().method() == "patched"
    with pytest.raises(TypeError), patched(owner, "method", lambda self: "patched"):
        owner().method("unexpected")
    assert dict(vars(owner)) == before


def test_resolve_returns_none_for_a_missing_attribute():
    assert resolve(f"{__name__}.Base") is Base
    assert resolve(f"{__name__}.Missing.name") is None


def test_private_names_of_libraries_are_all_in_a_table():
    known = {hook.path.rpartition(".")[2] for hook in (*HOOKS, *LAUNCHER_HOOKS)}
    known |= {part for hook in HOOKS for part in hook.path.split(".") if part.startswith("_")}
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in _defined(tree)}
    unknown = {
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path, tree in trees.items()
        for line, name, of_super in _private(tree)
        if name not in known | OTHERS and (of_super or name not in own)
    }
    assert not unknown


def test_product_does_not_use_unittest_mock():
    users = [p for p in PACKAGE.rglob("*.py") if "unittest" in p.read_text("utf-8")]
    assert users == []


def _defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def _private(tree):
    """(line, name, whether it is read from super()) of private attributes and imports."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            of_super = ast.unparse(node.value) == "super()"
            names = [(node.attr, of_super)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            names = [(node.args[1].value, True)] if isinstance(node.args[1], ast.Constant) else []
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("prefcli"):
            names = [(alias.name, True) for alias in node.names]
        for name, of_super in names:
            if name.startswith("_") and not name.startswith("__"):
                yield node.lineno, name, of_super
