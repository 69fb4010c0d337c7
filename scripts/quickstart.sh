#!/usr/bin/env bash
# From nothing to an aligned model: install, then sft -> check-sft -> dpo on the embedded task.
# Needs Python 3.11 and no GPU. Runs land in runs/; a second time finds them finished.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

prefcli sft recipes/quickstart/sft.yaml
prefcli check-sft recipes/quickstart/dpo.yaml
prefcli dpo recipes/quickstart/dpo.yaml
echo
echo "Five prompts nobody trained on, answered before and after:"
prefcli sample runs/quickstart-sft/model runs/quickstart-dpo/model \
    --prompts recipes/quickstart/data/prompts.jsonl --max-new-tokens 48
