"""LLaMA-Factory's YAML as a recipe."""

import functools
import json

import pytest

from tests.support import migration
from tests.support.migration import problems, recipe

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
def info(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))


swapped = functools.partial(migration.swapped, START)


def test_a_dpo_file(tmp_path):
    new, found = recipe(tmp_path, START, devices=2)
    assert (found.tool, found.method) == ("LLaMA-Factory", "dpo")
    assert (new.lora.rank, new.lora.alpha, new.lora.dropout) == (4, 8, 0.0)  # alpha is 2 x rank
    assert new.lora.target_modules == ["q_proj", "v_proj"]
    assert (new.dpo.beta, new.data.max_length, new.data.num_proc) == (0.2, 1024, 16)
    (source,) = new.data.train
    assert (source.path, source.split) == (str(tmp_path / "pairs.json"), None)
    assert source.columns == {"chosen": "good"}
    assert (new.training.global_batch_size, new.training.per_device_train_batch_size) == (16, 1)
    assert (new.training.warmup, new.training.num_train_epochs) == (0.1, 3.0)
    assert {d.key for d in found.dropped} >= {"template", "plot_loss", "ddp_timeout", "report_to"}
    assert any("'llama3'" in remark for remark in found.remarks)


def test_hub_subset_and_first_rows(tmp_path):
    text = swapped(("dataset: pairs", "dataset: hub, pairs\nmax_samples: 500"))
    new, _ = recipe(tmp_path, text)
    hub, pairs = new.data.train
    assert (hub.path, hub.name, hub.split) == ("org/hub", "s", "dev[:500]")
    assert pairs.split == "train[:500]"


def test_evaluation_data(tmp_path):
    text = swapped(("dataset: pairs", "dataset: pairs\nval_size: 0.1"))
    new, found = recipe(tmp_path, text)
    assert new.data.eval is None
    assert any("at random from the training rows" in remark for remark in found.remarks)
    more = "eval_dataset: hub\neval_strategy: steps\neval_steps: 50\n"
    new, _ = recipe(tmp_path, f"{START}{more}per_device_eval_batch_size: 2\n")
    assert (new.data.eval[0].path, new.training.eval_steps) == ("org/hub", 50)
    assert new.training.per_device_eval_batch_size == 2


def test_losses(tmp_path):
    new, found = recipe(tmp_path, f"{START}pref_loss: ipo\n")
    assert (new.ipo.beta, new.dpo) == (0.2, None)
    assert any("trains sigmoid whatever pref_loss says" in remark for remark in found.remarks)
    new, _ = recipe(tmp_path, f"{START}pref_loss: orpo\n")
    assert new.orpo.lambda_ == 0.2
    new, _ = recipe(tmp_path, f"{START}pref_loss: simpo\nsimpo_gamma: 0.5\n")
    assert (new.simpo.beta, new.simpo.gamma, new.simpo.cpo_alpha) == (0.2, 0.5, 0.0)
    new, found = recipe(tmp_path, f"{START}pref_loss: hinge\npref_ftx: 0.5\n")
    assert (new.dpo.loss_type, new.dpo.loss_weights) == (["hinge", "sft"], [1.0, 0.5])
    assert any("mean over rows" in remark for remark in found.remarks)
    assert "kto_pair" in problems(tmp_path, f"{START}pref_loss: kto_pair\n")["pref_loss"][1]
    assert (
        "no further SFT term"
        in (problems(tmp_path, f"{START}pref_loss: orpo\npref_ftx: 1.0\n")["pref_ftx"][1])
    )


def test_full_sft_trains_on_assistant_turns(tmp_path):
    text = swapped(
        ("stage: dpo", "stage: sft"),
        ("finetuning_type: lora", "finetuning_type: full"),
        ("pref_beta: 0.2\n", ""),
        ("dataset: pairs", "dataset: chats"),
    )
    new, found = recipe(tmp_path, f"{text}neat_packing: true\nflash_attn: fa2\n")
    assert new.lora is None
    assert {d.key for d in found.dropped} >= {"lora_rank", "lora_target"}
    assert (new.sft.assistant_only_loss, new.sft.packing) == (True, True)
    assert new.data.train[0].columns == {"messages": "turns"}
    assert new.model.attn_implementation == "flash_attention_2"
    found = problems(tmp_path, f"{text}packing: true\n")
    assert "see each other" in found["packing"][1]


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (swapped(("dataset: pairs", "dataset: nowhere")), "dataset", "'nowhere' is not in"),
        (swapped(("dataset: pairs", "dataset: alpaca")), "dataset", "convert the rows"),
        (swapped(("dataset: pairs", "dataset: pictures")), "dataset", "does not read its images"),
        (swapped(("stage: dpo", "stage: rm")), "stage", "prefcli does not train this"),
        (f"{START}quantization_bit: 3\n", "quantization_bit", "4 and 8 bits"),
        (f"{START}use_galore: true\n", "use_galore", "no GaLore"),
        (f"{START}adapter_name_or_path: a\n", "adapter_name_or_path", "model.adapter"),
        (f"{START}dpo_label_smoothing: 0.1\n", "dpo_label_smoothing", "no label smoothing"),
        (swapped(("_type: lora", "_type: freeze")), "finetuning_type", "no 'freeze'"),
    ],
)
def test_what_has_no_counterpart_is_an_error(tmp_path, text, key, said):
    found = problems(tmp_path, text)
    assert found.keys() == {key}
    assert said in found[key][1]


def test_without_dataset_info_its_folder_is_asked_for(tmp_path):
    (tmp_path / "dataset_info.json").unlink()
    place, said = problems(tmp_path, START)["dataset"]
    assert place == "8:1"
    assert "dataset_dir: FOLDER_OF_dataset_info.json" in said
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps(INFO))
    new, _ = recipe(tmp_path, f"{START}dataset_dir: sets\n")
    assert new.data.train[0].path == str(tmp_path / "sets" / "pairs.json")
