"""No test asks the hub, or uses a cache that is not its own.

To be settled before any library is imported, which looks once.
"""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# datasets looks through the whole folder at each of its steps: slow where many runs have left rows.
_cache = tempfile.TemporaryDirectory(prefix="prefcli-tests-")
os.environ["HF_DATASETS_CACHE"] = _cache.name


@pytest.fixture(autouse=True)
def _own_signals():
    """A command that has run to its end leaves its process deaf to them; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
