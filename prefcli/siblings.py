"""Between the processes that one launcher started on this machine: who failed first.

A launcher gives each start of its processes a port of its own; a file named after it is what they
share, before torch is there to ask and after it has given up.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def are_there() -> bool:
    """Did a launcher start more than this process?"""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def first_to_fail() -> bool:
    """Claim the word: true for one process a machine, which says what went wrong."""
    if not are_there():
        return True
    try:
        os.close(os.open(_claim(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return True  # nowhere to leave the claim: better said twice than not at all
    return True


def another_failed() -> bool:
    """Has any process of this machine failed? What the others wait for will then never come."""
    return are_there() and _claim().exists()


def _claim() -> Path:
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    start = "-".join(os.environ.get(name, "0") for name in names)
    return Path(tempfile.gettempdir()) / f"prefcli-{os.getuid()}-{os.getppid()}-{start}.failed"
