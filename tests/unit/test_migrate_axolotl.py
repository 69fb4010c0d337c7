"""Migration of axolotl's configs."""

import pytest

from tests.support.migration import codes_of, migrated, with_changes

START = """\
base_model: org/chat
model_type: LlamaForCausalLM
load_in_8bit: false
load_in_4bit: true
special_tokens:
  pad_token: <|pad|>
chat_template: tokenizer_default
rl: dpo
datasets:
  - path: org/pairs
    type: chat_template.default
    field_messages: conversation
    field_chosen: good
    message_property_mappings: {role: role, content: content}
    roles: {user: [user], assistant: [assistant]}
dataset_prepared_path:
val_set_size: 0.0
output_dir: ./out
sequence_len: 2048
sample_packing: false
adapter: qlora
lora_model_dir:
lora_r: 8
lora_alpha: 16
lora_dropout: 0.2
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: offload
flash_attention: true
warmup_ratio: 0.1
saves_per_epoch: 1
weight_decay: 0.01
"""


def changed(*changes: tuple[str, str]) -> str:
    return with_changes(START, *changes)


def test_migrate_dpo_config(tmp_path):
    recipe, migration = migrated(tmp_path, START, devices=2)
    assert (migration.tool, migration.method) == ("axolotl", "dpo")
    assert (recipe.model.name_or_path, recipe.model.quantization) == ("org/chat", "4bit")
    assert recipe.model.attn_implementation == "flash_attention_2"
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (8, 16, 0.2)
    assert recipe.lora.target_modules == "all-linear"
    assert recipe.dpo.beta == 0.1
    (source,) = recipe.data.train
    assert source.columns == {"conversations": "conversation", "chosen": "good"}
    assert recipe.data.max_length == 2048
    training = recipe.training
    assert (training.global_batch_size, training.per_device_train_batch_size) == (16, 2)
    assert (training.num_train_epochs, training.optim) == (4, "adamw_8bit")
    assert (training.warmup, training.weight_decay) == (0.1, 0.01)
    assert training.gradient_checkpointing is True
    dropped = {d.key for d in migration.dropped}
    assert dropped >= {"model_type", "load_in_8bit", "bf16", "special_tokens.pad_token"}
    assert "wandb_project" in dropped
    notes = " ".join(migration.notes)
    assert "longer than sequence_len" in notes
    assert "saved every 500 steps" in notes


def test_migrate_sft_config_trains_on_assistant_turns(tmp_path):
    text = changed(
        ("rl: dpo\n", ""),
        ("chat_template.default", "chat_template"),
        ("    field_chosen: good\n", ""),
        ("sample_packing: false", "sample_packing: true"),
        ("warmup_ratio: 0.1\n", ""),
    )
    recipe, migration = migrated(tmp_path, text)
    assert (recipe.sft.assistant_only_loss, recipe.sft.packing) == (True, True)
    assert recipe.data.train[0].columns == {"messages": "conversation"}
    assert recipe.training.warmup == 0.03
    assert any("at most 100 steps" in note for note in migration.notes)


def test_migrate_methods_by_rl(tmp_path):
    recipe, _ = migrated(tmp_path, changed(("rl: dpo", "rl: ipo\nrl_beta: 0.5")))
    assert recipe.ipo.beta == 0.5
    recipe, _ = migrated(tmp_path, changed(("rl: dpo", "rl: dpo\ndpo_loss_type: [ipo]")))
    assert recipe.dpo is None
    recipe, _ = migrated(tmp_path, changed(("rl: dpo", "rl: orpo\norpo_alpha: 0.3")))
    assert recipe.orpo.lambda_ == 0.3
    simpo = changed(("rl: dpo", "rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 0.5\ncpo_alpha: 0.0"))
    recipe, _ = migrated(tmp_path, simpo)
    assert (recipe.simpo.beta, recipe.simpo.gamma, recipe.simpo.cpo_alpha) == (2.0, 0.5, 0.0)
    kto = changed(("rl: dpo", "rl: kto\nkto_desirable_weight: 0.2"))
    recipe, _ = migrated(tmp_path, kto.replace("    type: chat_template.default\n", ""))
    assert (recipe.kto.desirable_weight, recipe.kto.undesirable_weight) == (0.2, 1.0)


EVALUATED = changed(
    (
        "val_set_size: 0.0",
        "test_datasets:\n  - {path: org/pairs, split: test, type: chat_template.default}",
    )
)


def test_migrate_test_datasets_become_evaluation_data(tmp_path):
    recipe, _ = migrated(tmp_path, f"{EVALUATED}eval_strategy: steps\neval_steps: 20\n")
    assert (recipe.data.eval[0].split, recipe.training.eval_steps) == ("test", 20)
    recipe, _ = migrated(tmp_path, f"{EVALUATED}eval_steps: 20\n")
    assert recipe.training.eval_steps == 20


def test_migrate_early_stopping(tmp_path):
    text = f"{EVALUATED}eval_steps: 20\nsave_steps: 40\nearly_stopping_patience: 3\n"
    recipe, _ = migrated(tmp_path, text.replace("saves_per_epoch: 1\n", ""))
    assert recipe.training.early_stopping.patience == 3
    assert (recipe.training.eval_steps, recipe.training.save_steps) == (20, 20)


def test_migrate_wandb_keys_become_a_tracker(tmp_path):
    text = changed(("wandb_project:", "wandb_project: mine\nwandb_name: first"))
    recipe, _ = migrated(tmp_path, text)
    assert (recipe.logging.report_to, recipe.logging.run_name) == (["wandb"], "first")


def test_migrate_hub_model_id_enables_the_push(tmp_path):
    recipe, _ = migrated(tmp_path, f"{START}hub_model_id: me/out\nhub_strategy: every_save\n")
    assert (recipe.push_to_hub.repo_id, recipe.push_to_hub.private) == ("me/out", True)


def test_migrate_trust_remote_code_with_a_pinned_commit(tmp_path):
    text = f"{START}trust_remote_code: true\nrevision_of_model: {'0a' * 20}\n"
    assert migrated(tmp_path, text)[0].model.trust_remote_code


@pytest.mark.parametrize(
    ("text", "key", "code"),
    [
        (changed(("_template.default", "ml.intel")), "datasets[0].type", "RCP164"),
        (changed(("rl: dpo", "rl: grpo")), "rl", "RCP154"),
        (f"{START}lora_modules_to_save: [lm_head]\n", "lora_modules_to_save", "RCP156"),
        (f"{START}batch_size: 32\n", "batch_size", "RCP156"),
        (f"{START}plugins: [a.b]\n", "plugins[0]", "RCP156"),
        (changed(("[user]", "[me]")), "datasets[0].roles", "RCP164"),
        (changed(("learning_rate: 0.0002\n", "")), "learning_rate", "RCP161"),
        (f"{START}early_stopping_patience: 3\n", "early_stopping_patience", "RCP163"),
        (f"{START}noisy: 1\n", "noisy", "RCP155"),
    ],
)
def test_migrate_key_without_an_equivalent_is_refused(tmp_path, text, key, code):
    assert codes_of(tmp_path, text) == {key: code}
