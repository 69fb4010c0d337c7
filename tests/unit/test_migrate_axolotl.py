"""axolotl's YAML as a recipe."""

import functools

import pytest

from tests.support import migration
from tests.support.migration import problems, recipe

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


swapped = functools.partial(migration.swapped, START)


def test_a_dpo_file(tmp_path):
    new, found = recipe(tmp_path, START, devices=2)
    assert (found.tool, found.method) == ("axolotl", "dpo")
    assert (new.model.name_or_path, new.model.quantization) == ("org/chat", "4bit")
    assert new.model.attn_implementation == "flash_attention_2"
    assert (new.lora.rank, new.lora.alpha, new.lora.dropout) == (8, 16, 0.2)
    assert new.lora.target_modules == "all-linear"
    assert new.dpo.beta == 0.1
    (source,) = new.data.train
    assert source.columns == {"conversations": "conversation", "chosen": "good"}
    assert new.data.max_length == 2048
    training = new.training
    assert (training.global_batch_size, training.per_device_train_batch_size) == (16, 2)
    assert (training.num_train_epochs, training.optim) == (4, "adamw_8bit")
    assert (training.warmup, training.weight_decay) == (0.1, 0.01)
    assert training.gradient_checkpointing is True
    dropped = {d.key: d.reason for d in found.dropped}
    assert dropped.keys() >= {"model_type", "load_in_8bit", "bf16", "special_tokens.pad_token"}
    assert dropped["wandb_project"] == "it is not set"
    said = " ".join(found.remarks)
    assert "longer than sequence_len" in said
    assert "saves_per_epoch 1" in said


def test_sft_trains_on_assistant_turns(tmp_path):
    text = swapped(
        ("rl: dpo\n", ""),
        ("chat_template.default", "chat_template"),
        ("    field_chosen: good\n", ""),
        ("sample_packing: false", "sample_packing: true"),
        ("warmup_ratio: 0.1\n", ""),
    )
    new, found = recipe(tmp_path, text)
    assert (new.sft.assistant_only_loss, new.sft.packing) == (True, True)
    assert new.data.train[0].columns == {"messages": "conversation"}
    assert new.training.warmup == 0.03
    assert any("at most 100" in remark for remark in found.remarks)


def test_methods(tmp_path):
    new, _ = recipe(tmp_path, swapped(("rl: dpo", "rl: ipo\nrl_beta: 0.5")))
    assert new.ipo.beta == 0.5
    new, _ = recipe(tmp_path, swapped(("rl: dpo", "rl: dpo\ndpo_loss_type: [ipo]")))
    assert new.dpo is None
    new, _ = recipe(tmp_path, swapped(("rl: dpo", "rl: orpo\norpo_alpha: 0.3")))
    assert new.orpo.lambda_ == 0.3
    simpo = swapped(("rl: dpo", "rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 0.5\ncpo_alpha: 0.0"))
    new, _ = recipe(tmp_path, simpo)
    assert (new.simpo.beta, new.simpo.gamma, new.simpo.cpo_alpha) == (2.0, 0.5, 0.0)
    plain = swapped(("rl: dpo", "rl: kto\nkto_desirable_weight: 0.2"))
    plain = plain.replace("    type: chat_template.default\n", "")
    new, _ = recipe(tmp_path, plain)
    assert (new.kto.desirable_weight, new.kto.undesirable_weight) == (0.2, 1.0)


def test_held_out_data_and_a_tracker(tmp_path):
    text = swapped(("val_set_size: 0.0", "test_datasets:\n  - {path: org/pairs, split: test}"))
    text = text.replace("split: test}", "split: test, type: chat_template.default}")
    text = text.replace("wandb_project:", "wandb_project: mine\nwandb_name: first")
    new, _ = recipe(tmp_path, f"{text}eval_strategy: steps\neval_steps: 20\n")
    assert (new.data.eval[0].split, new.training.eval_steps) == ("test", 20)
    assert (new.logging.report_to, new.logging.run_name) == (["wandb"], "first")


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (swapped(("tokenizer_default", "chatml")), "chat_template", "chat_template_jinja"),
        (swapped(("  pad_token", "  eos_token")), "special_tokens.eos_token", "as it is"),
        (swapped(("_template.default", "ml.intel")), "datasets[0].type", "'chatml.intel'"),
        (swapped(("rl: dpo", "rl: grpo")), "rl", "does not train this"),
        (f"{START}lora_modules_to_save: [lm_head]\n", "lora_modules_to_save", "adapters only"),
        (f"{START}batch_size: 32\n", "batch_size", "gradient_accumulation_steps instead"),
        (f"{START}plugins: [a.b]\n", "plugins", "no plugins"),
        (swapped(("[user]", "[me]")), "datasets[0].roles", "does not know all"),
        (swapped(("learning_rate: 0.0002\n", "")), "learning_rate", "is missing"),
        (f"{START}noisy: 1\n", "noisy", "does not know this key"),
    ],
)
def test_what_has_no_counterpart_is_an_error(tmp_path, text, key, said):
    found = problems(tmp_path, text)
    assert found.keys() == {key}
    assert said in found[key][1]
