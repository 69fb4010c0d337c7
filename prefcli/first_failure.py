"""Between the processes that one launcher started on this machine: who failed first.

A launcher gives each start of its processes a port of its own; a file named after it is what they
share, before torch is there to ask and after it has given up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def launched() -> bool:
    """Has a launcher started this process, be it alone? `accelerate launch` gives one process no
    rank, but its settings."""
    return has_siblings() or any(
        name in os.environ for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
    )


def has_siblings() -> bool:
    """Did a launcher start more than this process?"""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def first_to_fail() -> bool:
    """Claim the word: true for one process a machine, which says what went wrong."""
    return not has_siblings() or _leave(
        _claim(os.environ, os.getppid()), os.environ.get("RANK", "0")
    )


def another_failed() -> bool:
    """Has any process of this machine failed? What the others wait for will then never come."""
    return has_siblings() and _claim(os.environ, os.getppid()).exists()


class FailureMarker:
    """The same file as prefcli's own launcher sees it. `environment`: of any of its processes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._file = _claim(environment, os.getpid())

    def make_for(self, rank: int) -> None:
        """In place of one that can't any more."""
        _leave(self._file, str(rank))

    @property
    def rank(self) -> int | None:
        """Of the first to fail; None where nobody said so."""
        with suppress(OSError, ValueError):
            return int(self._file.read_text("ascii"))
        return None

    def remove(self) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _claim(environment: Mapping[str, str], launcher: int) -> Path:
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    start = "-".join(environment.get(name, "0") for name in names)
    # In containers the same port and process id come again; a claim of yesterday is none.
    name = f"prefcli-{os.getuid()}-{launcher}-{_birth(launcher)}-{start}.failed"
    return Path(tempfile.gettempdir()) / name


def _birth(process: int) -> str:
    """In ticks since the machine started; the 22nd figure, of which the 2nd may hold spaces."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    return ""


def _leave(file: Path, rank: str) -> bool:
    """False where somebody else has. The file appears with its content, so that none is half."""
    mine = file.with_suffix(f".{os.getpid()}")
    try:
        mine.write_text(rank, "ascii")
        os.link(mine, file)
    except FileExistsError:
        return False
    except OSError:
        return True  # nowhere to leave the claim: better said twice than not at all
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
    return True
