#!/usr/bin/env bash
# Install prefcli with everything its tests need, then run every check. Arguments go to pytest;
# `-m slow` runs the long tests, which are skipped here.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test

ruff check .
ruff format --check .
mypy
lint-imports
# A small model on a small machine is fastest on one thread, and the numbers are then the same
# everywhere. Two processes share the test files in their given order, so that long ones do not run last.
# With compiled files, which some environments turn off, later starts needn't compile the tests.
unset PYTHONDONTWRITEBYTECODE
OMP_NUM_THREADS=1 pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" "$@"
