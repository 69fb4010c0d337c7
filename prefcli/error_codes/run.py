"""RUN: run folders, resume and publishing."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RUN_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "RUN001",
        "run-is-finished",
        "--force-resume accepts changed settings, but the run in output_dir is finished, so "
        "they would have no effect.",
        "prefcli dpo recipe.yaml training.max_steps=200 --force-resume, after the run has finished",
        "Name another output_dir, and start from the model/ of the finished run.",
    ),
    ErrorCode(
        "RUN002",
        "run-has-diverged",
        "The run in output_dir diverged. Resuming it with the same recipe would diverge again.",
        "rerunning a command that ended with exit code 5",
        "Change the recipe, e.g. lower training.learning_rate, and name another output_dir. If "
        "a health rule was wrong, lower its level to warn: then the run resumes.",
    ),
    ErrorCode(
        "RUN003",
        "run-exists",
        "--resume is never, and output_dir already holds this run.",
        "prefcli dpo recipe.yaml --resume never, twice",
        "Name another output_dir, or use --resume auto.",
    ),
    ErrorCode(
        "RUN004",
        "resume-of-finished-run",
        "--resume names a checkpoint of a run that is finished.",
        "--resume runs/dpo/checkpoint-500 after the last step",
        "Name another output_dir to train again.",
    ),
    ErrorCode(
        "RUN005",
        "push-failed",
        "The model is trained and saved, but it was not pushed to the hub. The message has the "
        "reason. A model whose eval loss rose far above its start is not pushed.",
        "a network failure at the end of a run",
        "Rerun the same command to push again, or upload the model with the command in the "
        "message.",
    ),
    ErrorCode(
        "RUN006",
        "untrusted-checkpoint",
        "A checkpoint belongs to another user, or other users can write it. It contains pickle "
        "files, and loading a pickle can run code.",
        "output_dir in a folder that is shared with mode 777",
        "If you trust its owner, copy the checkpoint (cp -r), or remove the write permission "
        "of others with chmod.",
    ),
    ErrorCode(
        "RUN007",
        "different-run",
        "output_dir holds a run with other settings, rows or processes. Resuming would mix two "
        "runs.",
        "a changed dpo.beta with the same output_dir",
        "Name another output_dir, or undo the change. --force-resume accepts some differences, "
        "as the message says.",
    ),
    ErrorCode(
        "RUN010",
        "output-dir-is-a-file",
        "output_dir, or a folder above it, is a file.",
        "output_dir: recipe.yaml",
        "Name a folder.",
    ),
    ErrorCode(
        "RUN011",
        "output-dir-is-not-a-run",
        "output_dir holds files that are not a prefcli run. prefcli does not write among them.",
        "output_dir: ~",
        "Name a new or empty folder.",
    ),
    ErrorCode(
        "RUN012",
        "run-is-locked",
        "Another prefcli process is writing into output_dir, or into the file of --output.",
        "the same command started twice",
        "Wait for the other process to end, or name another output_dir or file.",
    ),
    ErrorCode(
        "RUN013",
        "output-dir-not-writable",
        "output_dir cannot be created or written.",
        "output_dir: /runs without permission",
        "Name a folder that this user can write.",
    ),
    ErrorCode(
        "RUN014",
        "no-such-checkpoint",
        "--resume names a path that is not a checkpoint of the run in output_dir.",
        "--resume runs/other/checkpoint-500",
        "Name a checkpoint folder in output_dir, or use --resume auto.",
    ),
    ErrorCode(
        "RUN015",
        "incomplete-checkpoint",
        "--resume names a checkpoint that was not written to its end, or whose files have changed "
        "since then. The message names the file.",
        "--resume of a checkpoint that was copied only in part",
        "Use --resume auto, which takes the last complete checkpoint.",
    ),
    ErrorCode(
        "RUN016",
        "damaged-run-file",
        "recipe.yaml or run.json in the run folder, or iterate.json in the folder of rounds, can't "
        "be read or holds what prefcli does not write, so it is unknown whether the run is the "
        "same.",
        "an empty run.json after the disk was full",
        "Restore the file from a backup, or name another output_dir.",
    ),
    ErrorCode(
        "RUN017",
        "model-is-gone",
        "The run has finished, but its model/ is missing or incomplete, and the folder has no "
        "checkpoint from which prefcli could save it again.",
        "mv runs/dpo/model elsewhere, then the same command again",
        "Restore model/, or name another output_dir to train the model again.",
    ),
    ErrorCode(
        "RUN100",
        "not-a-run-folder",
        "The command reads a run folder, and the path is not in one: there is neither run.json nor "
        "metrics.jsonl, or no recipe.yaml.",
        "prefcli report runs",
        "Name the output_dir of a run, or a file or folder in it.",
    ),
    ErrorCode(
        "RUN101",
        "run-without-model",
        "The command evaluates the model/ of a run, which is written when the run ends.",
        "prefcli eval runs/dpo, while the run is training",
        "Run it to its end, or name one of its checkpoints next to its recipe.yaml.",
    ),
    ErrorCode(
        "RUN102",
        "scores-of-other-settings",
        "`prefcli score` and `prefcli pairs` keep the results of a stopped start in a file that "
        "ends with .partial, and continue there. The file was written with another model, other "
        "data or other settings, which the message names, or is damaged.",
        "prefcli score runs/dpo rows.jsonl --output out.jsonl, stopped; then with runs/ipo",
        "Start with the same settings to continue, delete the file, or name another --output; "
        "`prefcli pairs --overwrite` starts over.",
    ),
    ErrorCode(
        "RUN103",
        "scoring-stopped",
        "`prefcli score` or `prefcli pairs` was stopped by a signal. The results so far are in a "
        "file that ends with .partial.",
        "a time limit of the scheduler, or Ctrl-C",
        "Run the same command again: it continues after the last result.",
    ),
    ErrorCode(
        "RUN104",
        "rounds-of-other-settings",
        "`prefcli iterate` continues the rounds in its folder, and they were made with another "
        "recipe, other overrides, another method or another --reference.",
        "prefcli iterate recipe.yaml --rounds 3, then with dpo.beta=0.3",
        "Restore the settings that the message names, or name another --output-dir.",
    ),
    ErrorCode(
        "RUN105",
        "damaged-results-of-a-round",
        "`prefcli iterate` reads the results of a round from the files that its commands have "
        "written, and one of them is missing, can't be read or holds what prefcli does not write.",
        "half of an eval.json that was copied to another disk",
        "Remove the file that the hint names, and run the same command again to repeat its step.",
    ),
)
