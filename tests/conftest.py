"""Environment of every test: no access to the hub, a cache folder per session.

The variables are set before any library is imported, since the libraries read them only once.
The fixtures of tests/train and tests/gpu import the heavy libraries inside, since tests/unit runs
without them.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# datasets lists the cache folder in each step, which is slow where many runs have left rows.
_cache = tempfile.TemporaryDirectory(prefix="prefcli-tests-")
os.environ["HF_DATASETS_CACHE"] = _cache.name


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def _restored_signal_handlers():
    """Restore the handlers: a command that ends ignores signals, but the test process continues."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    from tests.support.tiny_runs import save_tiny_model

    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory) -> Path:
    from tests.support.tiny_runs import write_pairs

    return write_pairs(tmp_path_factory.mktemp("tiny-pairs"))


@pytest.fixture
def recipe_data(tiny_model, tiny_pairs, tmp_path) -> Iterator[dict]:
    """A recipe whose rows are those of all tests: prepared once, and not to be changed."""
    from tests.support.tiny_runs import small_recipe

    before = {path: path.read_bytes() for path in tiny_pairs.iterdir()}
    yield small_recipe(tiny_model, tmp_path, tiny_pairs)
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)
            raise AssertionError(f"the test changed {path.name}, which all tests read")


@pytest.fixture
def make_recipe(tmp_path):
    """Write plain data to a file and load it as a recipe."""
    from prefcli.recipe import Loaded, load

    def make(data: dict, *overrides: str) -> Loaded:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.dump(data, Dumper=yaml.CSafeDumper), encoding="utf-8")
        return load(str(path), overrides)

    return make
