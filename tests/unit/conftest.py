"""Run and collect every test here as if the heavy libraries were not installed."""

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from prefcli.console import keep_stdout_for_json
from tests.support.light_half import HEAVY

pytest.register_assert_rewrite("tests.support.broken_recipes")


@pytest.fixture(autouse=True)
def _plain_console():
    """Undo the --json of an earlier test."""
    keep_stdout_for_json(False)


class _Blocker:
    """An entry of sys.meta_path that refuses to import the heavy libraries."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"tests/unit is the light half: it must not import {name}")


@contextmanager
def _light():
    # After tests/train the libraries are loaded; without them an import reaches the blocker.
    aside = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in HEAVY}
    for name in aside:
        del sys.modules[name]
    sys.meta_path.insert(0, _Blocker)
    try:
        yield
        _check()
    finally:
        sys.meta_path.remove(_Blocker)
        sys.modules.update(aside)


def _check():
    loaded = [name for name in HEAVY if name in sys.modules]
    assert not loaded, f"the light half loaded {', '.join(loaded)}"


_without_libraries = ExitStack()
"""Entered from one test of this folder to the next, since it takes 5 ms."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    with _light():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Is called for the tests of other folders, too."""
    if not _is_here(item):
        return (yield)
    if _Blocker not in sys.meta_path:
        _without_libraries.enter_context(_light())
    try:
        return (yield)
    finally:
        if nextitem is None or not _is_here(nextitem):
            _without_libraries.close()


def _is_here(item):
    return Path(__file__).parent in item.path.parents


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    _check()
    return result
