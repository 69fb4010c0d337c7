# shellcheck shell=bash
# Sourced by the other scripts: make .venv, install this clone into it with the versions that were
# tested, and put it first on PATH. Arguments: extras, as in `source scripts/environment.sh test`.
# Does nothing the second time, unless pyproject.toml or constraints.txt changed.
python="${PYTHON:-python3}"
extras="${1:-}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "prefcli needs Python 3.11 or newer; set PYTHON to one" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=".venv/installed-${extras:-plain}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    # torch by its exact version first: pip then takes the build that fits the machine.
    .venv/bin/python -m pip install --quiet --constraint constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
    touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
