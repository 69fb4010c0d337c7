#!/usr/bin/env bash
# Run the tests with the oldest versions that pyproject.toml allows. Arguments go to pytest.
# The first run downloads torch's CUDA build, several gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-oldest/bin/python ] || "${PYTHON:-python3}" -m venv .venv-oldest
python=.venv-oldest/bin/python
"$python" -m pip install --quiet uv
"$python" -m uv pip install --quiet --python "$python" --resolution lowest-direct --editable '.[test]'
OMP_NUM_THREADS=1 "$python" -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"
