"""No test asks the hub, or uses a cache that is not its own.

To be settled before any library is imported, which looks once.
"""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# datasets looks through the whole folder at each of its steps: slow where many runs have left rows.
_cache = tempfile.TemporaryDirectory(prefix="prefcli-tests-")
os.environ["HF_DATASETS_CACHE"] = _cache.name
