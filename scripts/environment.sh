# shellcheck shell=bash
# Sourced by the other scripts: makes .venv, installs this clone into it with the tested versions and
# puts it first on PATH. Arguments: extras, as in `source scripts/environment.sh test`.
# Installs again only if pyproject.toml or constraints.txt changed.
python="${PYTHON:-python3}"
extras="${1:-}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "prefcli needs Python 3.11 or newer; set PYTHON to its path" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=".venv/installed-${extras:-plain}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    # torch first and by its exact version: pip then chooses the build that fits the machine.
    .venv/bin/python -m pip install --quiet --constraint constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
    touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
