"""RCP: recipe, command line and migration."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RECIPE_CODES: tuple[ErrorCode, ...] = (
    # 150-199: migration of another tool's config
    ErrorCode(
        "RCP150",
        "unknown-tool",
        "`prefcli migrate` recognises a config by its keys, and this file has none of the keys of "
        "axolotl, LLaMA-Factory, alignment-handbook or trl.",
        "prefcli migrate tokenizer_config.yaml",
        "Pass the YAML file that the tool trains with.",
    ),
    ErrorCode(
        "RCP151",
        "already-a-recipe",
        "The file has the sections `model` and `data` of a prefcli recipe.",
        "prefcli migrate dpo.yaml, where dpo.yaml is a recipe",
        "Run `prefcli validate` on it instead.",
    ),
    ErrorCode(
        "RCP152",
        "method-unclear",
        "Neither the keys of the config nor its path say which method it trains.",
        "a trl config with `beta` but without `loss_type`",
        "Pass `--method`.",
    ),
    ErrorCode(
        "RCP153",
        "method-contradicts-config",
        "`--method` names a method that the keys of the config do not fit.",
        "prefcli migrate sft.yaml --method dpo, where sft.yaml has `packing: true`",
        "Remove `--method`, or pass the method that the config is for.",
    ),
    ErrorCode(
        "RCP154",
        "method-not-available",
        "The config trains a method that prefcli does not have.",
        "stage: rm",
        "Use the tool that the config is for.",
    ),
    ErrorCode(
        "RCP155",
        "unknown-config-key",
        "`prefcli migrate` does not know the key, so it cannot say whether it changes training.",
        "a misspelt key, or a key of a newer version of the tool",
        "Remove the key if the run does not need it, or report it as missing.",
    ),
    ErrorCode(
        "RCP156",
        "no-equivalent",
        "The key changes training, and prefcli has no setting for it.",
        "neftune_noise_alpha: 5",
        "Remove the key if the run does not need it, or write the value that the message names.",
    ),
    ErrorCode(
        "RCP157",
        "wrong-value",
        "The value is not of a kind that the tool accepts for this key.",
        "per_device_train_batch_size: many",
        "Correct the value in the config.",
    ),
    ErrorCode(
        "RCP158",
        "no-effect",
        "The key has no effect on the method, alone or together with the other keys.",
        "rpo_alpha in a config for kto",
        "Remove the key, or pass `--method` if the config is for another method.",
    ),
    ErrorCode(
        "RCP159",
        "devices-missing",
        "A recipe states the batch of one optimizer step over all devices. The config only has the "
        "batch per device, and the number of devices is not in it.",
        "prefcli migrate config.yaml",
        "Pass `--devices N`.",
    ),
    ErrorCode(
        "RCP160",
        "depends-on-environment",
        "The value means something different on each machine or for each checkpoint.",
        "report_to: all",
        "Write the value itself: the names of the trackers, or a dtype.",
    ),
    ErrorCode(
        "RCP161",
        "missing-setting",
        "The tool itself needs a key that the config does not have.",
        "an axolotl config without learning_rate",
        "Add the key to the config.",
    ),
    ErrorCode(
        "RCP162",
        "remote-code-not-pinned",
        "The config runs Python code from a model repository. prefcli only runs code of a commit "
        "that the recipe names, since a branch can change.",
        "trust_remote_code: true without model_revision",
        "Read the code, and write the full commit as the model's revision.",
    ),
    ErrorCode(
        "RCP163",
        "early-stopping-without-evaluation",
        "Early stopping and load_best_model_at_end compare evaluations, and the recipe would have "
        "no evaluation every N steps.",
        "load_best_model_at_end: true with eval_strategy: epoch",
        "Give evaluation data, and eval_steps with eval_strategy: steps.",
    ),
    ErrorCode(
        "RCP164",
        "rows-not-convertible",
        "The tool renders these rows with rules of its own, so that prefcli would train on other "
        "text.",
        "type: chatml.intel in an axolotl config",
        "Convert the rows to messages, or to prompt, chosen and rejected.",
    ),
    ErrorCode(
        "RCP165",
        "dataset-info-missing",
        "LLaMA-Factory defines its datasets in dataset_info.json, and the file or the dataset's "
        "entry was not found.",
        "dataset: my_pairs without dataset_info.json",
        "Copy dataset_info.json to the folder of the config, or write its folder as dataset_dir.",
    ),
    ErrorCode(
        "RCP166",
        "interpolation-in-config",
        "A value contains ${...}, which is plain text in the config and an interpolation in a "
        "recipe.",
        "output_dir: ${RUN}/out",
        "Write the value itself.",
    ),
    ErrorCode(
        "RCP167",
        "required-key-without-source",
        "A recipe needs this key, and no key of the config becomes it.",
        "a config without output_dir",
        "Add the tool's key to the config.",
    ),
)
