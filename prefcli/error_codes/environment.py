"""ENV: the machine, packages, the launcher, the disk, the hub and Slurm."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

ENVIRONMENT_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "ENV001",
        "process-killed",
        "A process of the run was killed by SIGKILL. Usually the kernel or the scheduler killed it "
        "because the machine or the job ran out of memory.",
        "a job with --mem 32G that loads a 14B model on each of 8 processes",
        "Look for an out-of-memory kill in `dmesg` or the job's accounting. Request more memory or "
        "start fewer processes, then rerun the same command: it resumes from the last checkpoint.",
    ),
    ErrorCode(
        "ENV002",
        "process-crashed",
        "A process of the run died of another signal, such as SIGSEGV: a library crashed.",
        "a CUDA library that does not match the driver",
        "Rerun with `python -X faulthandler -m prefcli ...` to see where it crashed, and check the "
        "versions with `pip check`.",
    ),
    ErrorCode(
        "ENV003",
        "devices-do-not-fit",
        "The launch section asks for processes or a strategy that this machine cannot run.",
        "launch: {processes: 8} on a machine with 4 GPUs",
        "Set launch.processes to at most the number of visible GPUs. Use `strategy: ddp` on a "
        "machine without GPUs.",
    ),
    ErrorCode(
        "ENV004",
        "launch-failed",
        "The processes could not be started, or the nodes of the run could not connect.",
        "MASTER_ADDR names a host that another node cannot resolve",
        "Check on every node that the host of MASTER_ADDR resolves and that MASTER_PORT is free "
        "and not blocked by a firewall.",
    ),
    ErrorCode(
        "ENV005",
        "nodes-do-not-match",
        "The launch section and the job disagree about the nodes of the run, or the variables by "
        "which nodes find each other are missing.",
        "launch: {nodes: 4} in a Slurm job with --nodes 2",
        "Use the same number in the recipe and in the job, and start one prefcli per node: "
        "`srun --nodes N --ntasks-per-node 1 prefcli ...`. Outside Slurm set NODE_RANK, "
        "MASTER_ADDR and MASTER_PORT.",
    ),
    # 045-046: launcher and recipe.
    ErrorCode(
        "ENV045",
        "launcher-mismatch",
        "The launcher started other processes, nodes or another strategy than the recipe says, or "
        "accelerate replaced the strategy, as it does with sharding on a CPU.",
        "torchrun --nproc-per-node 2 -m prefcli dpo recipe.yaml with launch: {processes: 4}",
        "Run `prefcli` without a launcher, so that it starts what the recipe says; or correct or "
        "remove the launch section.",
    ),
    ErrorCode(
        "ENV046",
        "several-gpus-one-process",
        "Several GPUs are visible to a process that no launcher started.",
        "prefcli dpo recipe.yaml on a machine with 4 GPUs, without a launch section",
        "Write `launch: {strategy: ddp}` in the recipe, or set CUDA_VISIBLE_DEVICES=0 to use one.",
    ),
)
