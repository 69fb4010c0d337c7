#!/usr/bin/env bash
# Build the site of docs/ in site/; a broken link, anchor or page outside the navigation is an error.
# Arguments go to mkdocs: `bash scripts/docs.sh --site-dir /tmp/site`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh docs

mkdocs build --strict "$@"
