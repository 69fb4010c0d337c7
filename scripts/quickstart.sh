#!/usr/bin/env bash
# From nothing to an aligned model: install, then sft -> check-sft -> dpo on the embedded task.
# Needs Python 3.11 and no GPU. Runs land in runs/; a second time finds them finished.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# A model this small gains nothing from more threads, and loses much on a busy machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step() { printf '\n== %s\n' "$*"; "$@"; }

step prefcli sft recipes/quickstart/sft.yaml
step prefcli check-sft recipes/quickstart/dpo.yaml
step prefcli dpo recipes/quickstart/dpo.yaml
step prefcli check-sft recipes/quickstart/dpo.yaml model.name_or_path=runs/quickstart-dpo/model
printf '\n== Five prompts nobody trained on, answered before and after\n'
prefcli sample runs/quickstart-sft/model runs/quickstart-dpo/model \
    --prompts recipes/quickstart/data/prompts.jsonl --max-new-tokens 48
