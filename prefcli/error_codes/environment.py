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
    # 008-009: launcher and recipe
    ErrorCode(
        "ENV008",
        "launcher-mismatch",
        "The launcher started other processes, nodes or another strategy than the recipe says, or "
        "accelerate replaced the strategy, as it does with sharding on a CPU.",
        "torchrun --nproc-per-node 2 -m prefcli dpo recipe.yaml with launch: {processes: 4}",
        "Run `prefcli` without a launcher, so that it starts what the recipe says; or correct or "
        "remove the launch section.",
    ),
    ErrorCode(
        "ENV009",
        "several-gpus-one-process",
        "Several GPUs are visible to a process that no launcher started.",
        "prefcli dpo recipe.yaml on a machine with 4 GPUs, without a launch section",
        "Write `launch: {strategy: ddp}` in the recipe, or set CUDA_VISIBLE_DEVICES=0 to use one.",
    ),
    # 020-039: job files for Slurm
    ErrorCode(
        "ENV020",
        "gpus-do-not-match",
        "`--gpus` of `prefcli slurm` and the recipe's launch section disagree. Each process uses "
        "one GPU.",
        "prefcli slurm dpo.yaml --time 4:00:00 --gpus 4 launch.processes=8",
        "Remove `--gpus`, or use the same number for both.",
    ),
    ErrorCode(
        "ENV021",
        "processes-unknown",
        "The default of launch.processes is the number of GPUs of the machine that trains, which "
        "`prefcli slurm` and `prefcli launch` do not know.",
        "launch: {nodes: 2}, without --gpus",
        "Set launch.processes, or pass `--gpus N` to `prefcli slurm`.",
    ),
    ErrorCode(
        "ENV022",
        "strategy-needs-gpus",
        "FSDP and DeepSpeed run on GPUs only, and `--gpus 0` requests none.",
        "launch: {strategy: fsdp2} with --gpus 0",
        "Write `strategy: ddp`, or remove `--gpus 0`.",
    ),
    ErrorCode(
        "ENV023",
        "time-limit",
        "`--time` is not in one of Slurm's forms: minutes, MM:SS, HH:MM:SS or D-HH[:MM[:SS]].",
        "--time 4h",
        "Write 04:00:00 for four hours.",
    ),
    ErrorCode(
        "ENV024",
        "grace-too-long",
        "Slurm sends its signal `--grace` seconds before the time limit, which would be before the "
        "start of the job.",
        "--time 4:00 --grace 300, as 4:00 is four minutes",
        "Pass a longer `--time` or a shorter `--grace`.",
    ),
    ErrorCode(
        "ENV025",
        "container-options",
        "The options for the environment of the job contradict each other.",
        "--venv env --container image.sqsh",
        "Use a virtual environment or a container; `--mount` and `--container-runtime` need "
        "`--container`.",
    ),
    ErrorCode(
        "ENV026",
        "sbatch-option",
        "An option of sbatch is not in its long form, is already in the job file, or contains "
        "characters that Slurm does not accept.",
        "--sbatch=-N3",
        "Write the long form, as in `--sbatch=--constraint=a100`, and set the others with the "
        "options of `prefcli slurm`.",
    ),
    # 040-049: downloads from the Hugging Face Hub
    ErrorCode(
        "ENV040",
        "download-while-offline",
        "`prefcli download` needs the hub, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.",
        "HF_HUB_OFFLINE=1 prefcli download dpo.yaml",
        "Unset the variable, on a machine with a network.",
    ),
    ErrorCode(
        "ENV041",
        "download-failed",
        "The hub or the network failed during a download.",
        "a proxy that blocks huggingface.co",
        "Check that the hub is reachable, then rerun the command: finished files are kept.",
    ),
    ErrorCode(
        "ENV042",
        "gated-repository",
        "The authors of the repository grant access on request, and the account has none.",
        "model: {name_or_path: meta-llama/Llama-3.1-8B}",
        "Log in with `hf auth login` and accept the terms on the repository's page.",
    ),
    ErrorCode(
        "ENV043",
        "repository-not-found",
        "The hub has no repository of this name, or it is private and the account has no access.",
        "data: {train: {path: org/mispelt}}",
        "Correct the name, or log in with `hf auth login`.",
    ),
    ErrorCode(
        "ENV044",
        "revision-not-found",
        "The repository has no such branch, tag or commit.",
        "model: {name_or_path: org/model, revision: v9}",
        "Write a branch, a tag or a full commit of the repository.",
    ),
    ErrorCode(
        "ENV045",
        "no-safetensors",
        "The model repository has no safetensors weights. prefcli does not download pickled "
        "weights, since loading them can run code.",
        "a repository with pytorch_model.bin only",
        "Load the model on a machine without secrets, save it with `save_pretrained`, and use that "
        "folder; or use another model.",
    ),
    ErrorCode(
        "ENV046",
        "local-path-missing",
        "The recipe names a local file or folder that does not exist.",
        "model: {name_or_path: runs/sft/model} before the sft run",
        "Correct the path. If an earlier run writes it, download that run's recipe instead.",
    ),
)
