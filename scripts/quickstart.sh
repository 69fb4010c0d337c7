#!/usr/bin/env bash
# Install prefcli and train an aligned model on the embedded task: sft, then dpo, which runs check-sft.
# Needs Python 3.11 or newer and no GPU. Runs are written to runs/; a second call finds them finished.
# Prints evaluations and outcomes on one screen; the whole output is in runs/quickstart.log.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# A model this small gains nothing from more threads, and is much slower with them on a busy machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p runs
log=runs/quickstart.log
: > "$log"

main_lines() {
    sed -u -nE '/^(step=.* eval_loss=|check-sft: (perplexity per|chosen)|done: the |error|warning)|already finished/ {
        s/^(.{90}[^ ]*) .*/\1 .../
        p
    }'
}

step() {
    printf "== %s\n" "$*"
    "$@" 2>&1 | tee -a "$log" | main_lines || {
        local code=$?
        tail -n 20 "$log" >&2
        return "$code"
    }
}

step prefcli sft recipes/quickstart/sft.yaml
step prefcli dpo recipes/quickstart/dpo.yaml
step prefcli check-sft recipes/quickstart/dpo.yaml model.name_or_path=runs/quickstart-dpo/model
printf "== Answers before and after dpo\n"
prefcli sample runs/quickstart-sft/model runs/quickstart-dpo/model --max-new-tokens 48 \
    --prompt "Which colour do people think of when they see a banana?" \
    --prompt "I have a question. We have guests soon. Where should I put the clean plates?"
