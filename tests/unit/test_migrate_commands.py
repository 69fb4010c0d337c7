"""Migration of training commands, READMEs, partial drafts and KEY=VALUE settings."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe.load import load_text
from prefcli.recipe.migrate import migrate
from tests.support.migration import line_and_column, write

WORDS = [
    *("trl", "dpo", "--model_name_or_path", "org/base", "--dataset_name", "org/pairs"),
    *("--output_dir", "out", "--beta", "0.2", "--num_processes", "2"),
]
YAML = """\
model_name_or_path: org/base
dataset_name: org/pairs
output_dir: out
beta: 0.1
learning_rate: 1e-6
loss_type: sigmoid
"""


def recipe_of(migration):
    assert migration.problems == []
    return load_text(migration.text, "new.yaml").recipe


def test_words_of_a_command_migrate():
    recipe = recipe_of(migrate(WORDS))
    assert (recipe.dpo.beta, recipe.training.global_batch_size) == (0.2, 16)


def test_words_of_another_command_are_refused():
    with pytest.raises(RecipeError) as error:
        migrate(["ls", "-l"])
    assert error.value.problems[0].code == "RCP170"


@pytest.mark.parametrize(
    "command",
    [
        "trl dpo --config c.yaml --beta 0.3",
        "accelerate launch --num_processes 1 scripts/run_dpo.py c.yaml --beta=0.3",
        "ACCELERATE_LOG_LEVEL=info accelerate launch scripts/run_dpo.py c.yaml --beta 0.3",
    ],
)
def test_flags_replace_the_keys_of_the_file_that_a_command_names(tmp_path, command):
    write(tmp_path, YAML, "c.yaml")
    recipe = recipe_of(migrate(write(tmp_path, command, "run.sh"), devices=1))
    assert (recipe.dpo.beta, recipe.training.learning_rate) == (0.3, 1e-6)


def test_flag_that_is_refused_is_reported_at_its_line(tmp_path):
    text = " ".join(WORDS) + " \\\n  --neftune_noise_alpha 5\n"
    (problem,) = migrate(write(tmp_path, text, "run.sh")).problems
    assert (problem.code, line_and_column(problem)) == ("RCP156", "2:3")


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("", "$1"),
        ("", "${LR}"),
        ("LR=$(cat lr.txt)\n", "$LR"),
        ("LR=1e-6\nLR=2e-6\n", "$LR"),
        ("", "`cat lr.txt`"),
        ("for LR in 1e-6 2e-6; do\n", "$LR"),
    ],
)
def test_value_that_only_the_shell_knows_is_refused(tmp_path, before, value):
    text = f"{before}{' '.join(WORDS)} --learning_rate {value}\n"
    problems = migrate(write(tmp_path, text, "run.sh")).problems
    assert "RCP171" in {p.code for p in problems if p.path == "learning_rate"}


def test_number_of_processes_that_only_the_machine_knows_is_missing(tmp_path):
    text = "torchrun --nproc_per_node=gpu trl/scripts/" + " ".join(WORDS[:10]).replace(
        "trl dpo", "dpo.py"
    )
    problems = migrate(write(tmp_path, text, "run.sh")).problems
    assert [p.code for p in problems] == ["RCP159"]


def test_quotes_and_comments_are_those_of_the_shell(tmp_path):
    text = f"NAME='a run'  # a comment\n{' '.join(WORDS)} --report_to wandb --run_name \"$NAME\"\n"
    assert recipe_of(migrate(write(tmp_path, text, "run.sh"))).logging.run_name == "a run"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("echo hello\n", "RCP170"),
        ("trl sft --x 1\ntrl dpo --x 1\n", "RCP170"),
        ("cat <<EOF\nx\nEOF\n", "RCP170"),
        ("swift rlhf --rlhf_type dpo\n", "RCP173"),
        ("tune run lora_dpo_single_device --config x\n", "RCP173"),
        ("deepspeed --module openrlhf.cli.train_dpo --pretrain x\n", "RCP173"),
        ("trl dpo --config nowhere.yaml\n", "RCP011"),
    ],
)
def test_script_without_one_command_of_a_known_tool_is_refused(tmp_path, text, code):
    with pytest.raises(RecipeError) as error:
        migrate(write(tmp_path, text, "run.sh"))
    assert error.value.problems[0].code == code


@pytest.mark.parametrize(
    "text",
    [
        "rlhf_type: dpo\nmodel: a\n",
        "dataset_mixer_list: [a]\nmodel_name_or_path: b\n",
        "pretrain: a\nmicro_train_batch_size: 1\n",
    ],
)
def test_config_of_a_tool_that_is_not_migrated_is_named(tmp_path, text):
    with pytest.raises(RecipeError) as error:
        migrate(write(tmp_path, text))
    assert error.value.problems[0].code == "RCP173"


CARD = f"# Model\n\n```yaml\n{YAML}```\n\n```python\nprint(1)\n```\n"


def test_fenced_block_of_a_readme_migrates(tmp_path):
    migration = migrate(write(tmp_path, CARD, "README.md"), devices=1)
    assert recipe_of(migration).dpo.beta == 0.1
    assert {r.key: r.place[-4:] for r in migration.renamed}["model_name_or_path"] == ":4:1"


def test_readme_with_two_configs_is_refused(tmp_path):
    with pytest.raises(RecipeError) as error:
        migrate(write(tmp_path, CARD * 2, "README.md"))
    assert error.value.problems[0].code == "RCP169"


def test_partial_recipe_lists_what_is_missing(tmp_path):
    migration = migrate(write(tmp_path, f"{YAML}neftune_noise_alpha: 5\n"), devices=1)
    assert migration.text is None
    assert migration.lines()[0] == "read as trl's, for dpo"
    header, _, recipe = migration.partial.partition("output_dir")
    header = " ".join(header.replace("#", "").split())
    assert "config.yaml:7:1: neftune_noise_alpha: prefcli does not have NEFTune" in header
    assert load_text(f"output_dir{recipe}", "new.yaml").recipe.dpo.beta == 0.1


def test_unclear_method_is_reported_with_the_problems_of_any_method(tmp_path):
    text = YAML.replace("loss_type: sigmoid", "neftune_noise_alpha: 5")
    codes = [p.code for p in migrate(write(tmp_path, text)).problems]
    assert sorted(codes) == ["RCP152", "RCP156", "RCP159"]


def test_settings_of_the_command_line_replace_what_the_file_has(tmp_path):
    path = write(tmp_path, f"{YAML}per_device_train_batch_size: 4\n")
    overrides = ("training.global_batch_size=64", "dpo.beta=0.5", "data.train.path=org/mine")
    recipe = recipe_of(migrate(path, overrides=overrides))
    assert (recipe.training.global_batch_size, recipe.dpo.beta) == (64, 0.5)
    assert recipe.training.per_device_train_batch_size == 4
    assert [source.path for source in recipe.data.train] == ["org/mine"]


def test_setting_of_the_command_line_that_the_schema_does_not_have_is_reported(tmp_path):
    (problem,) = migrate(write(tmp_path, YAML), devices=1, overrides=("dpo.betta=1",)).problems
    assert problem.code == "RCP001"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "rm.yaml",  # LLaMA-Factory
            "model_name_or_path: org/base\nstage: rm\ndo_train: true\nfinetuning_type: full\n"
            "dataset: pairs\ndataset_dir: .\ntemplate: default\ncutoff_len: 2048\noutput_dir: out\n"
            "learning_rate: 1e-5\n",
        ),
        (
            "reward.yaml",  # axolotl
            "base_model: org/base\nreward_model: true\nnum_labels: 1\n"
            "datasets:\n  - {path: org/pairs, type: bradley_terry.chat_template}\n"
            "sequence_len: 2048\nmicro_batch_size: 1\nlearning_rate: 1e-5\noutput_dir: ./out\n",
        ),
    ],
)
def test_reward_models_of_other_tools_migrate(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    info = '{"pairs": {"file_name": "pairs.jsonl", "ranking": true}}'
    (tmp_path / "dataset_info.json").write_text(info)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    migration = migrate(str(tmp_path / name), devices=1)
    recipe = recipe_of(migration)
    assert recipe.reward is not None
    assert recipe.training.learning_rate == 1e-5


def test_command_of_trls_reward_trainer_migrates():
    words = [
        *("trl", "reward", "--model_name_or_path", "org/base", "--dataset_name", "org/pairs"),
        *("--output_dir", "out", "--center_rewards_coefficient", "0.01", "--max_length", "2048"),
    ]
    recipe = recipe_of(migrate(words, devices=1))
    assert recipe.reward.center_rewards_coefficient == 0.01
    assert recipe.training.learning_rate == 1e-4  # trl's default


def test_command_of_trls_rloo_trainer_migrates_with_its_reward_model():
    words = [
        *("trl", "rloo", "--model_name_or_path", "org/base", "--dataset_name", "org/prompts"),
        *("--output_dir", "out", "--reward_model_name_or_path", "org/rm", "--temperature", "0.9"),
        *("--num_generations", "4", "--use_vllm", "true", "--num_processes", "1"),
    ]
    recipe = recipe_of(migrate(words))
    assert recipe.judge.reward_model.name_or_path == "org/rm"
    rloo = recipe.rloo
    assert (rloo.beta, rloo.num_generations, rloo.temperature) == (0.05, 4, 0.9)
    assert recipe.data.max_length == 1024 + rloo.max_completion_length == 1536
    odd = migrate([*words, "--max_completion_length", "long"])
    assert [p.path for p in odd.problems] == ["max_completion_length"]
    refused = migrate([*words, "--reward_funcs", "accuracy_reward", "--num_iterations", "2"])
    assert {p.path: p.code for p in refused.problems} == {
        "reward_funcs": "RCP156",
        "num_iterations": "RCP156",
    }
