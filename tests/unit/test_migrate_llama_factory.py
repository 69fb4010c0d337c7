"""Migration of LLaMA-Factory's configs."""

import json

import pytest

from tests.support.migration import (
    codes_of,
    line_and_column,
    migrated,
    problems_of,
    with_changes,
)

START = """\
model_name_or_path: org/chat
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
pref_beta: 0.2
dataset: pairs
template: llama3
cutoff_len: 1024
preprocessing_num_workers: 16
overwrite_cache: true
output_dir: saves/x
plot_loss: true
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
}
INFO = {
    "pairs": {
        "file_name": "pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "good", "rejected": "rejected"},
    },
    "hub": {"hf_hub_url": "org/hub", "subset": "s", "split": "dev", "formatting": "sharegpt"},
    "chats": {
        "file_name": "chats.json",
        "formatting": "sharegpt",
        "columns": {"messages": "turns"},
        "tags": OPENAI,
    },
    "alpaca": {"file_name": "alpaca.json"},
    "pictures": {"file_name": "p.json", "formatting": "sharegpt", "columns": {"images": "i"}},
}


@pytest.fixture(autouse=True)
def dataset_info(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))


def changed(*changes: tuple[str, str]) -> str:
    return with_changes(START, *changes)


def test_migrate_dpo_config(tmp_path):
    recipe, migration = migrated(tmp_path, START, devices=2)
    assert (migration.tool, migration.method) == ("LLaMA-Factory", "dpo")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (4, 8, 0.0)
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert (recipe.dpo.beta, recipe.data.max_length, recipe.data.num_proc) == (0.2, 1024, 16)
    (source,) = recipe.data.train
    assert (source.path, source.split) == (str(tmp_path / "pairs.json"), None)
    assert source.columns == {"chosen": "good"}
    training = recipe.training
    assert (training.global_batch_size, training.per_device_train_batch_size) == (16, 1)
    assert (training.warmup, training.num_train_epochs) == (0.1, 3.0)
    dropped = {d.key for d in migration.dropped}
    assert dropped >= {"template", "plot_loss", "ddp_timeout", "report_to"}
    assert any("'llama3'" in note for note in migration.notes)


def test_migrate_max_samples_limits_each_dataset(tmp_path):
    text = changed(("dataset: pairs", "dataset: hub, pairs\nmax_samples: 500"))
    recipe, _ = migrated(tmp_path, text)
    hub, pairs = recipe.data.train
    assert (hub.path, hub.name, hub.split) == ("org/hub", "s", "dev[:500]")
    assert pairs.split == "train[:500]"


def test_migrate_val_size_has_no_evaluation(tmp_path):
    recipe, migration = migrated(
        tmp_path, changed(("dataset: pairs", "dataset: pairs\nval_size: 0.1"))
    )
    assert recipe.data.eval is None
    assert any("write held-out data as data.eval" in note for note in migration.notes)


EVALUATED = f"{START}eval_dataset: hub\neval_strategy: steps\neval_steps: 50\n"


def test_migrate_eval_dataset_becomes_evaluation_data(tmp_path):
    recipe, _ = migrated(tmp_path, f"{EVALUATED}per_device_eval_batch_size: 2\n")
    assert (recipe.data.eval[0].path, recipe.training.eval_steps) == ("org/hub", 50)
    assert recipe.training.per_device_eval_batch_size == 2


def test_migrate_early_stopping_steps_become_the_patience(tmp_path):
    text = f"{EVALUATED}load_best_model_at_end: true\nearly_stopping_steps: 4\n"
    recipe, _ = migrated(tmp_path, text)
    assert recipe.training.early_stopping.patience == 4


def test_migrate_losses(tmp_path):
    recipe, migration = migrated(tmp_path, f"{START}pref_loss: ipo\n")
    assert (recipe.ipo.beta, recipe.dpo) == (0.2, None)
    assert any("ignores pref_loss" in note for note in migration.notes)
    recipe, _ = migrated(tmp_path, f"{START}pref_loss: orpo\n")
    assert recipe.orpo.lambda_ == 0.2
    recipe, _ = migrated(tmp_path, f"{START}pref_loss: simpo\nsimpo_gamma: 0.5\n")
    assert (recipe.simpo.beta, recipe.simpo.gamma, recipe.simpo.cpo_alpha) == (0.2, 0.5, 0.0)
    recipe, migration = migrated(tmp_path, f"{START}pref_loss: hinge\npref_ftx: 0.5\n")
    assert (recipe.dpo.loss_type, recipe.dpo.loss_weights) == (["hinge", "sft"], [1.0, 0.5])
    assert any("mean over rows" in note for note in migration.notes)


def test_migrate_full_sft_trains_on_assistant_turns(tmp_path):
    text = changed(
        ("stage: dpo", "stage: sft"),
        ("finetuning_type: lora", "finetuning_type: full"),
        ("pref_beta: 0.2\n", ""),
        ("dataset: pairs", "dataset: chats"),
    )
    recipe, migration = migrated(tmp_path, f"{text}neat_packing: true\nflash_attn: fa2\n")
    assert recipe.lora is None
    assert {d.key for d in migration.dropped} >= {"lora_rank", "lora_target"}
    assert (recipe.sft.assistant_only_loss, recipe.sft.packing) == (True, True)
    assert recipe.data.train[0].columns == {"messages": "turns"}
    assert recipe.model.attn_implementation == "flash_attention_2"
    assert codes_of(tmp_path, f"{text}packing: true\n") == {"packing": "RCP156"}


@pytest.mark.parametrize(
    ("text", "key", "code"),
    [
        (changed(("dataset: pairs", "dataset: nowhere")), "dataset", "RCP165"),
        (changed(("dataset: pairs", "dataset: alpaca")), "dataset", "RCP164"),
        (changed(("dataset: pairs", "dataset: pictures")), "dataset", "RCP164"),
        (changed(("stage: dpo", "stage: rm")), "stage", "RCP154"),
        (f"{START}quantization_bit: 3\n", "quantization_bit", "RCP156"),
        (f"{START}use_galore: true\n", "use_galore", "RCP156"),
        (f"{START}dpo_label_smoothing: 0.1\n", "dpo_label_smoothing", "RCP156"),
        (f"{START}pref_loss: kto_pair\n", "pref_loss", "RCP156"),
        (f"{START}pref_loss: orpo\npref_ftx: 1.0\n", "pref_ftx", "RCP158"),
        (changed(("_type: lora", "_type: freeze")), "finetuning_type", "RCP156"),
    ],
)
def test_migrate_key_without_an_equivalent_is_refused(tmp_path, text, key, code):
    assert codes_of(tmp_path, text) == {key: code}


def test_migrate_without_dataset_info_names_its_folder(tmp_path):
    (tmp_path / "dataset_info.json").unlink()
    problem = problems_of(tmp_path, START)["dataset"]
    assert (problem.code, line_and_column(problem)) == ("RCP165", "8:1")
    assert "dataset_dir: FOLDER_OF_dataset_info.json" in problem.hint


def test_migrate_dataset_dir_is_relative_to_the_config(tmp_path):
    (tmp_path / "dataset_info.json").unlink()
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps(INFO))
    recipe, _ = migrated(tmp_path, f"{START}dataset_dir: sets\n")
    assert recipe.data.train[0].path == str(tmp_path / "sets" / "pairs.json")
