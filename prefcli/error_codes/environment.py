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
        "Set launch.processes to at most the number of visible GPUs. Use `strategy: auto` on a "
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
        "prefcli.training.run.train() in a script, on a machine with 4 GPUs",
        "Run the command `prefcli`, which starts a process for each GPU, or set "
        "CUDA_VISIBLE_DEVICES=0 to use one.",
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
        "Write `strategy: auto`, or remove `--gpus 0`.",
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
    ErrorCode(
        "ENV050",
        "disk-too-small",
        "The checkpoints and the final model of the run need more space than the disk of "
        "output_dir has. Old checkpoints of the same run count as free space, since new ones "
        "replace them.",
        "save_steps: 50 for a 7B model on a disk with 100 GB",
        "Free some space, name an output_dir on another disk, raise training.save_steps, or "
        "set training.save_total_limit.",
    ),
    ErrorCode(
        "ENV051",
        "disk-write-failed",
        "Writing to output_dir, or the output of another command, failed: the disk is full, over "
        "its quota, read-only or gone. The last complete checkpoint of a run is intact.",
        "a shared file system that reaches its quota during a run",
        "Fix what the message names, then rerun the same command: a run resumes from the last "
        "complete checkpoint.",
    ),
    ErrorCode(
        "ENV052",
        "other-disk-not-writable",
        "A disk other than that of output_dir is full or cannot be written, usually that of a "
        "cache or of temporary files.",
        "HF_HOME on a small home directory",
        "Free some space, or move the caches: set TMPDIR, HF_HOME and HF_DATASETS_CACHE to a "
        "larger disk.",
    ),
    ErrorCode(
        "ENV053",
        "no-gpu-for-quantization",
        "Quantized weights need a GPU, and this machine has none.",
        "model.quantization: 4bit on a laptop",
        "Run on a machine with a GPU. Use --dry-run to check the rest of the recipe here.",
    ),
    ErrorCode(
        "ENV054",
        "package-missing",
        "A setting needs a package that is not installed.",
        "training.optim: adamw_8bit without bitsandbytes",
        "Install the package with the command in the message, or change the setting.",
    ),
    ErrorCode(
        "ENV055",
        "cache-not-writable",
        "`prefcli prepare` stores rows in the cache of datasets, and that folder is not writable.",
        "HF_DATASETS_CACHE=/read-only/cache",
        "Set HF_DATASETS_CACHE to a writable folder, for this command and for the run.",
    ),
    ErrorCode(
        "ENV056",
        "push-while-offline",
        "push_to_hub is set, but this machine is offline, so the model could not be pushed.",
        "HF_HUB_OFFLINE=1 with push_to_hub in the recipe",
        "Remove push_to_hub, and upload the model later with the command in the message.",
    ),
    ErrorCode(
        "ENV057",
        "not-logged-in",
        "push_to_hub is set, but there is no login to the hub, or the hub rejects it.",
        "an expired HF_TOKEN",
        "Run `hf auth login` with a token that may write, or export HF_TOKEN.",
    ),
    ErrorCode(
        "ENV058",
        "hub-unreachable-for-push",
        "push_to_hub is set, but the hub did not answer, so the login could not be checked.",
        "a node without internet access",
        "Check the network. Or remove push_to_hub, and upload the model later with the command "
        "in the message.",
    ),
    ErrorCode(
        "ENV059",
        "device-count-unknown",
        "A dry-run needs the number of GPUs. launch.processes defaults to those of the machine "
        "that trains, and this machine has none.",
        "launch: {strategy: fsdp2} in a dry-run on a laptop",
        "Pass the number, e.g. --devices 8, or set launch.processes.",
    ),
    ErrorCode(
        "ENV060",
        "invalid-hardware-option",
        "--devices, --strategy or --gpu-memory of a dry-run has a value that cannot be used.",
        "--gpu-memory 80TiBs",
        "Write the value as the message shows.",
    ),
    ErrorCode(
        "ENV061",
        "output-not-writable",
        "Standard output of a command that prints a result cannot be written. A run continues "
        "without its log.",
        "prefcli schema > /full/disk/schema.json",
        "Free some space, or send the output to a file on another disk.",
    ),
    ErrorCode(
        "ENV062",
        "run-folder-gone",
        "The run folder was moved, renamed or deleted while the run was writing to it.",
        "mv runs/dpo runs/old during training",
        "Move it back and rerun the same command, which resumes from the last checkpoint.",
    ),
)
