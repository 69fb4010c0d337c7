#!/usr/bin/env bash
# Install prefcli with everything its tests need, then run every check. Works on a fresh clone, and again.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test

ruff check .
ruff format --check .
mypy
lint-imports
# A small model on a small machine is fastest on one thread, and the figures are then the same everywhere;
# two processes share the files of tests, in their own order, so that the long ones are not the last.
OMP_NUM_THREADS=1 pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"
