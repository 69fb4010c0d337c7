#!/usr/bin/env bash
# Submit three jobs: sft, check-sft as a gate, dpo. Each starts when the one before it ended with 0.
#
#   scripts/slurm/pipeline.sh [--print] SFT.yaml DPO.yaml --time 04:00:00 [more options of prefcli slurm]
#
# Run it on a login node, in an environment that has prefcli, from the folder where the recipes'
# relative paths begin. DPO.yaml starts from the result of SFT.yaml: its model.name_or_path is RUN/model.
# The options go to all three jobs; nodes and GPUs come from the launch section of each recipe. A
# preempted job keeps its number when it is requeued, so the next job keeps waiting. If the gate fails
# (exit code 3), or a job fails for another reason, the jobs after it are removed from the queue.
# With --print, files are shown; nothing is downloaded, written or submitted.
set -euo pipefail

print=false
if [ "${1:-}" = --print ]; then
    print=true
    shift
fi
if [ $# -lt 2 ] || [[ "$1$2" == -* ]]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
sft=$1 dpo=$2
shift 2

# Write all job files before submitting the first: a mistake in the last recipe then costs no job.
jobs="jobs"
if $print; then
    jobs=$(mktemp -d)
    trap 'rm -r "$jobs"' EXIT
fi
mkdir -p "$jobs"
prefcli slurm "$sft" --method sft "$@" >"$jobs/sft.sbatch"
prefcli slurm "$dpo" --method check-sft "$@" >"$jobs/check-sft.sbatch"
prefcli slurm "$dpo" --method dpo "$@" >"$jobs/dpo.sbatch"

step() {
    printf '+%s\n' "$(printf ' %q' "$@")"
    $print || "$@"
}

# setting RECIPE KEY: print a value of the recipe
setting() {
    python3 -c "import sys; from prefcli.recipe import load; print(load(sys.argv[1]).recipe.$2)" "$1"
}

# submit COMMAND [OPTION...]: set $job to the number of the job
submit() {
    local command=$1
    shift
    if $print; then
        printf '\n+ sbatch --parsable%s\n' "$(printf ' %q' "$@" "jobs/$command.sbatch")"
        cat "$jobs/$command.sbatch"
        job="<$command>"
    else
        job=$(sbatch --parsable "$@" "$jobs/$command.sbatch")
        job=${job%%;*} # a federation adds the cluster's name
        echo "$command: job $job"
    fi
}

# The model and tokenizer that dpo starts from do not exist yet, so its own job prepares its rows.
step prefcli download "$sft"
step prefcli download "$dpo" "model.name_or_path=$(setting "$sft" model.name_or_path)"
step prefcli prepare "$sft" --method sft
for recipe in "$sft" "$dpo"; do
    step mkdir -p "$(dirname "$(setting "$recipe" output_dir)")" # for the logs; Slurm does not create folders
done

submit sft
submit check-sft --dependency="afterok:$job" --kill-on-invalid-dep=yes
submit dpo --dependency="afterok:$job" --kill-on-invalid-dep=yes
