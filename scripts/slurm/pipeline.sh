#!/usr/bin/env bash
# Three jobs, each of which starts when the one before it has ended with 0: sft, check-sft as a gate, dpo.
#
#   scripts/slurm/pipeline.sh [--print] SFT.yaml DPO.yaml --time 04:00:00 [more options of prefcli slurm]
#
# To be run on a login node, in an environment that has prefcli, from the folder where the recipes'
# relative paths begin. DPO.yaml starts from what SFT.yaml leaves: its model.name_or_path is RUN/model.
# The options go to all three jobs; nodes and GPUs are those of each recipe's launch section. A job that
# is pre-empted keeps its number when it goes back into the queue, so the next one waits on. Where the
# gate says no (exit code 3), or a job fails otherwise, those after it are taken out of the queue.
# With --print nothing is fetched, written or submitted, but shown.
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

# All of the files before the first is submitted: a mistake in the last recipe costs no job.
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

# setting RECIPE KEY: what the recipe says there
setting() {
    python3 -c "import sys; from prefcli.recipe import load; print(load(sys.argv[1]).recipe.$2)" "$1"
}

# submit COMMAND [OPTION...]: the job's number is left in $job
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

# What dpo starts from is not there yet; its tokenizer neither, so its rows wait for its own job.
step prefcli download "$sft"
step prefcli download "$dpo" "model.name_or_path=$(setting "$sft" model.name_or_path)"
step prefcli prepare "$sft" --method sft
for recipe in "$sft" "$dpo"; do
    step mkdir -p "$(dirname "$(setting "$recipe" output_dir)")" # of the logs, which Slurm does not make
done

submit sft
submit check-sft --dependency="afterok:$job" --kill-on-invalid-dep=yes
submit dpo --dependency="afterok:$job" --kill-on-invalid-dep=yes
