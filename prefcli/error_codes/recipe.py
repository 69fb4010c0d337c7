"""RCP: recipe, command line and migration."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RECIPE_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "RCP001",
        "unknown-key",
        "A recipe or an override has a key that prefcli does not know. Unknown keys are errors, "
        "since a misspelt setting would silently have no effect.",
        "training:\n  learning_rat: 1e-6",
        "Write the key that the message suggests, or remove it. `prefcli schema` prints all keys.",
    ),
    ErrorCode(
        "RCP002",
        "renamed",
        "A key, an option, a command or the order of arguments is from an earlier version of "
        "prefcli.",
        "push: {repo_id: me/my-model}",
        "Write the new name that the message gives. The changelog lists all renamed keys and "
        "options.",
    ),
    ErrorCode(
        "RCP003",
        "missing-key",
        "A key that has no default is missing.",
        "model:\n  revision: main",
        "Add the key. The message shows how to write it.",
    ),
    ErrorCode(
        "RCP004",
        "wrong-type",
        "A value has the wrong type, such as text instead of a number, or one value instead of a "
        "list or a section.",
        "training:\n  save_steps: often",
        "Write a value of the type that the message names.",
    ),
    ErrorCode(
        "RCP005",
        "out-of-range",
        "A number is outside the range in which the setting has a meaning.",
        "lora:\n  dropout: 1.5",
        "Write a number in the range that the message gives.",
    ),
    ErrorCode(
        "RCP006",
        "unknown-choice",
        "A value is not one of the choices of its key.",
        "training:\n  lr_scheduler_type: cosin",
        "Write one of the choices that the message lists.",
    ),
    ErrorCode(
        "RCP007",
        "empty-value",
        "A key or an override has no value, or an empty list or text. In an override, the usual "
        "cause is a shell variable that is not set.",
        "prefcli dpo recipe.yaml output_dir=$RUN",
        "Write a value, `{}` for a section of defaults or `null` for nothing, or remove the key.",
    ),
    ErrorCode(
        "RCP008",
        "duplicate-key",
        "A section has the same key twice. YAML would silently use the last one.",
        "seed: 1\nseed: 2",
        "Remove one of the two lines.",
    ),
    ErrorCode(
        "RCP009",
        "yaml-syntax",
        "The text is not valid YAML, or a key is not a plain word.",
        "model: {name_or_path: some/model",
        "Correct the text at the place that the message gives.",
    ),
    ErrorCode(
        "RCP010",
        "yaml-feature",
        "The recipe uses a YAML feature that recipes do not support: anchors and aliases, tags, "
        "several documents, or very deep nesting.",
        "seed: &seed 1",
        "Write plain values. `${section.key}` uses a value twice.",
    ),
    ErrorCode(
        "RCP011",
        "not-a-recipe",
        "The file cannot be read, or its content is not a recipe: a folder, a binary or very large "
        "file, an empty file, or a list.",
        "prefcli validate data.parquet",
        "Write the path of a YAML recipe. `prefcli recipes list` lists the shipped ones.",
    ),
    ErrorCode(
        "RCP012",
        "interpolation",
        "A `${...}` cannot be resolved, or the placeholder `???` still has no value.",
        "output_dir: runs/${oc.env:NAME}",
        "Refer to a key that the recipe has, or export the environment variable. Forms: "
        "`${section.key}`, `${oc.env:NAME}`, `${oc.env:NAME,default}`, `${recipe_dir:}`.",
    ),
    ErrorCode(
        "RCP013",
        "not-an-override",
        "An argument after the recipe is not KEY=VALUE with a dotted path as the key.",
        "prefcli dpo recipe.yaml training.learning_rate 1e-6",
        "Write KEY=VALUE, e.g. `training.learning_rate=1e-6` or `data.eval.split=test`.",
    ),
    ErrorCode(
        "RCP014",
        "override-target",
        "An override goes to a place that the recipe does not have, such as an entry beyond the "
        "end of a list, or a key of a single value.",
        "prefcli dpo recipe.yaml data.train[3].split=test",
        "Write the path that the message suggests, or override the whole list.",
    ),
    ErrorCode(
        "RCP015",
        "access-token",
        "A recipe or the command line has what looks like an access token. Recipes are saved with "
        "runs, and other users of the machine can read command lines.",
        "prefcli dpo recipe.yaml model.revision=hf_...",
        "Remove it, revoke it if others may have seen it, and run `hf auth login` or export "
        "HF_TOKEN.",
    ),
    ErrorCode(
        "RCP016",
        "conflicting-settings",
        "Settings contradict each other, or a setting has no effect with the others. prefcli never "
        "ignores a setting silently.",
        "training:\n  warmup_ratio: 0.1\n  warmup_steps: 100",
        "Follow the message: remove one of the settings, or change it.",
    ),
    ErrorCode(
        "RCP017",
        "bad-path",
        "A value cannot be a path or a hub id: it has control characters, is too long, or is "
        "neither an existing file nor a valid id.",
        "model:\n  name_or_path: my model",
        "Write OWNER/NAME for a hub id, or a path; start the path of a folder that does not exist "
        "yet with `./`.",
    ),
    ErrorCode(
        "RCP018",
        "no-method-section",
        "The recipe has no section of a method, or not the one of the command.",
        "prefcli kto dpo.yaml",
        "Add the section, e.g. `kto: {}`, or run the command of a section that the recipe has.",
    ),
    ErrorCode(
        "RCP019",
        "which-method",
        "The recipe has sections of several methods and the command is for one, or `--method` is "
        "not a method.",
        "prefcli data sft-and-dpo.yaml",
        "Add `--method` with one of the recipe's methods.",
    ),
    ErrorCode(
        "RCP020",
        "incompatible-settings",
        "Each setting is valid, but the libraries do not support them together with this method "
        "and strategy. The message names the settings, and the table in "
        "`prefcli/recipe/compatibility.py` the sources.",
        "model: {quantization: 4bit}\nlaunch: {strategy: fsdp2}",
        "Change one of the settings as the message says.",
    ),
    ErrorCode(
        "RCP022",
        "unusual-value",
        "A value is more than ten times outside the range of published runs of this method.",
        "dpo: {beta: 50}",
        "Write a value in the published range. If the value is intended, pass `--allow-unusual`.",
    ),
    ErrorCode(
        "RCP023",
        "tracker-not-installed",
        "The package of an experiment tracker is not installed here. `validate` only warns; a run "
        "and a dry-run need it.",
        "logging: {report_to: [wandb]}",
        "Install the package, or all trackers: `pip install 'prefcli[trackers]'`.",
    ),
    ErrorCode(
        "RCP024",
        "tracker-environment",
        "An environment variable disables a tracker, or makes it open connections although "
        "`--offline` is given.",
        "DISABLE_MLFLOW_INTEGRATION=TRUE prefcli dpo recipe.yaml",
        "Unset the variable, set it to a local path, or remove the tracker from logging.report_to.",
    ),
    ErrorCode(
        "RCP025",
        "option-without-effect",
        "An option has no effect together with the command or its other options.",
        "prefcli dpo recipe.yaml --gpu-memory 80GiB",
        "Remove the option, or add the one that the message names.",
    ),
    ErrorCode(
        "RCP033",
        "invalid-option-value",
        "An option or an argument of the command line is empty, or its number is out of range.",
        "prefcli sample '' --prompts prompts.jsonl",
        "Write a value; check the shell variable that it comes from.",
    ),
    ErrorCode(
        "RCP026",
        "no-such-recipe",
        "No recipe is given, or no shipped recipe has this name.",
        "prefcli recipes show zephir",
        "Write one of the names that `prefcli recipes list` prints.",
    ),
    ErrorCode(
        "RCP027",
        "output-file",
        "A file that the command should create cannot be written, or exists already.",
        "prefcli migrate dpo.yaml --output recipe.yaml",
        "Name another file, or remove the existing one.",
    ),
    ErrorCode(
        "RCP028",
        "no-such-code",
        "`prefcli explain` does not know this error code.",
        "prefcli explain RCP999",
        "Run `prefcli explain` to list all codes.",
    ),
    ErrorCode(
        "RCP029",
        "deepspeed-not-installed",
        "The strategies zero2 and zero3 need DeepSpeed, which is not installed.",
        "launch: {strategy: zero3}",
        "Install it with `pip install 'prefcli[deepspeed]'`, or use fsdp2, which needs only torch.",
    ),
    ErrorCode(
        "RCP030",
        "strategy-not-chosen",
        "`prefcli launch` shows the processes of one strategy, and `launch.strategy: auto` is "
        "chosen when a run starts, by the memory of its GPUs.",
        "prefcli launch dpo.yaml launch.processes=8",
        "Name a strategy, e.g. launch.strategy=fsdp2. `--dry-run` shows which one fits.",
    ),
    ErrorCode(
        "RCP031",
        "unknown-metric",
        "A metric in training.early_stopping or expected is not measured by an evaluation of the "
        "method.",
        "training:\n  early_stopping: {metric: eval_los}",
        "Write a metric that the message suggests.",
    ),
    ErrorCode(
        "RCP032",
        "unpinned-code",
        "With model.trust_remote_code, Python files from the model's repository run on this "
        "machine. They must be those of one commit, since a branch or a tag can change.",
        "model: {name_or_path: org/model, trust_remote_code: true}",
        "Read the code, and write the full commit hash as the revision.",
    ),
    # 150-199: migration of another tool's config
    ErrorCode(
        "RCP034",
        "command-line",
        "An option is unknown, an argument is missing, or an option has no value or a wrong one.",
        "prefcli dpo recipe.yaml --beta 0.2",
        "Write what the message suggests. A key of the recipe is given as KEY=VALUE, without --.",
    ),
    ErrorCode(
        "RCP035",
        "unknown-command",
        "The first argument is not a command of prefcli. It may be a recipe, another tool's word "
        "or a misspelt command.",
        "prefcli train recipe.yaml",
        "Write the command that the message suggests; `prefcli --help` lists all commands.",
    ),
    ErrorCode(
        "RCP036",
        "same-runs-in-a-sweep",
        "Two runs of a sweep would have the same settings, and so the same folder, or a key of a "
        "sweep is named twice.",
        "prefcli sweep recipe.yaml beta=0.1,0.2,0.1",
        "Write each key, and each value of a key, once.",
    ),
    ErrorCode(
        "RCP037",
        "range-in-a-grid",
        "A setting of a sweep is a range, and a grid needs values.",
        "prefcli sweep recipe.yaml beta=0.01..1",
        "Add --random N, which draws from the range, or write values: beta=0.01,0.1,1.",
    ),
    ErrorCode(
        "RCP040",
        "no-held-out-rows",
        "`prefcli eval` compares models on rows that were not trained on, and the recipe has none.",
        "prefcli eval recipe.yaml, without data.eval",
        "Name a file with --data FILE, or write data.eval, e.g. data.eval={from_train: 0.05}.",
    ),
    ErrorCode(
        "RCP041",
        "scored-without-pairs",
        "`prefcli data --scored` compares the two sides of pairs, and the method trains on "
        "labelled rows or demonstrations.",
        "prefcli data recipe.yaml --method kto --scored runs/dpo",
        "Name a method of pairs with --method, e.g. --method dpo.",
    ),
    ErrorCode(
        "RCP042",
        "scored-by-its-own-rows",
        "Every model of `prefcli data --scored` was trained on all of these prompts. A model "
        "agrees with the labels that it was trained on, the swapped ones included.",
        "prefcli dpo recipe.yaml, then prefcli data recipe.yaml --scored runs/dpo",
        "Train a run on each half, with data.train.split='train[:50%]' and 'train[50%:]', and name "
        "both. Or name a model that was trained on other rows.",
    ),
    ErrorCode(
        "RCP043",
        "clean-file-of-unlike-sources",
        "`prefcli data --write-clean` writes one file, and the sources of data.train have "
        "different columns, chat or prompt_template.",
        "data: {train: [{path: a.jsonl, columns: {prompt: question}}, {path: b.jsonl}]}",
        "Clean one source at a time, with data.train={path: FILE, ...}.",
    ),
    ErrorCode(
        "RCP044",
        "rows-that-a-model-finds",
        "`--drop` or `--swap` names rows that only a model can find, and no model is named.",
        "prefcli data recipe.yaml --drop easy --write-clean clean.jsonl",
        "Name a model or runs with --scored, or a reward model with --reward-model.",
    ),
    ErrorCode(
        "RCP150",
        "unknown-tool",
        "`prefcli migrate` recognises a config by its keys, and this file has none of the keys of "
        "axolotl, LLaMA-Factory, alignment-handbook, trl, oumi or a run of W&B.",
        "prefcli migrate tokenizer_config.yaml",
        "Pass the YAML file or the shell script that the tool trains with.",
    ),
    ErrorCode(
        "RCP151",
        "already-a-recipe",
        "The file has `model.name_or_path` or a method's section, and `data`, as a recipe has.",
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
        "RCP161",
        "missing-setting",
        "The tool itself needs a key that the config does not have.",
        "an axolotl config without learning_rate",
        "Add the key to the config.",
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
        "The tool renders these rows with its own rules, so that prefcli would train on other "
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
    ErrorCode(
        "RCP168",
        "two-keys-for-one-setting",
        "Two keys of the config are names of the same setting and have different values. Tools "
        "differ in which of them they use.",
        "rl_beta: 0.1 and dpo_beta: 0.3 in an axolotl config",
        "Remove one of the two keys.",
    ),
    ErrorCode(
        "RCP169",
        "readme-without-config",
        "A README is read if exactly one of its fenced blocks has the keys of a tool.",
        "a model card with two axolotl configs",
        "Copy the block that trained the model to a YAML file.",
    ),
    ErrorCode(
        "RCP170",
        "not-one-training-command",
        "A script is read if exactly one of its commands is a training command of a known tool. "
        "Heredocs are not read.",
        "a script that runs sft and dpo one after the other",
        "Pass the words of one command after `--`.",
    ),
    ErrorCode(
        "RCP171",
        "value-known-at-run-time",
        "A value of the command depends on a shell variable that the script does not set once to "
        "plain text, on another command, or on a loop.",
        "--learning_rate $1",
        "Write the value itself.",
    ),
    ErrorCode(
        "RCP172",
        "config-of-another-tool",
        "The file has the keys of axolotl, LLaMA-Factory, alignment-handbook, trl, oumi or a run "
        "of W&B instead of a recipe's.",
        "prefcli validate config.yaml, where config.yaml is a config of axolotl",
        "Convert it with `prefcli migrate`.",
    ),
    ErrorCode(
        "RCP173",
        "tool-without-migration",
        "`prefcli migrate` recognises the tool, but does not know its keys.",
        "prefcli migrate recipe.yaml, where recipe.yaml is a config of torchtune",
        "Start from a shipped recipe for the model, or use the tool's own trl arguments.",
    ),
)
