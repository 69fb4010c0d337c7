"""ENV: the machine, packages, the launcher, the disk, the hub and Slurm."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

ENVIRONMENT_CODES: tuple[ErrorCode, ...] = ()
