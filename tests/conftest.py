"""No test asks the hub. To be settled before any library is imported, which looks once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
