"""Finds out which process failed first, of those that one launcher started on this machine.

The processes share a marker file, named after the port that the launcher gave them. It works before
torch.distributed is initialised and after it has failed. torchelastic's error files do not replace
it: each worker writes its own, and no worker can read the others'.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def launched() -> bool:
    """Return whether a launcher started this process, even a single one.

    `accelerate launch` sets no rank for a single process, only its own settings.
    """
    return is_distributed() or any(
        name in os.environ for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
    )


def is_distributed() -> bool:
    """Return whether a launcher started more than one process."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def first_to_fail() -> bool:
    """Mark this process as failed; true for the first of the machine, which prints the error."""
    return not is_distributed() or _create(
        _marker_file(os.environ, os.getppid()), os.environ.get("RANK", "0")
    )


def another_failed() -> bool:
    """Return whether any process of this machine has failed, so that waiting for it is useless."""
    return is_distributed() and _marker_file(os.environ, os.getppid()).exists()


class FailureMarker:
    """The marker file, as prefcli's launcher sees it.

    environment: the environment of any of its processes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._file = _marker_file(environment, os.getpid())

    def create_for(self, rank: int) -> None:
        """Create the marker for a process that was killed and could not do so itself."""
        _create(self._file, str(rank))

    @property
    def rank(self) -> int | None:
        """The rank that failed first; None if no process created the marker."""
        with suppress(OSError, ValueError):
            return int(self._file.read_text("ascii"))
        return None

    def remove(self) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _marker_file(environment: Mapping[str, str], launcher: int) -> Path:
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    start = "-".join(environment.get(name, "0") for name in names)
    # Containers reuse ports and process ids: the start time rules out yesterday's marker.
    name = f"prefcli-{os.getuid()}-{launcher}-{_start_time(launcher)}-{start}.failed"
    return Path(tempfile.gettempdir()) / name


def _start_time(process: int) -> str:
    """Return when a process started, in clock ticks since boot: field 22 of /proc/PID/stat.

    Field 2, the command name, may contain spaces.
    """
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    return ""


def _create(file: Path, rank: str) -> bool:
    """Create the marker atomically, content included; false if another process already has."""
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        draft.write_text(rank, "ascii")
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError:
        return True  # no place for a marker: printing an error twice beats never printing it
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return True
