"""alignment-handbook's and trl's YAML as a recipe; what holds for every tool; the command."""

import json
import sys

import pytest

from prefcli import cli
from prefcli.methods import METHODS
from prefcli.recipe.aliases import FOREIGN
from prefcli.recipe.load import load
from prefcli.recipe.migrate import TOOLS, migrate
from prefcli.recipe.migrate.base import MultiKeyRule, Refuse
from prefcli.recipe.suggestions import all_paths
from tests.support.migration import problems, recipe, write

HANDBOOK = """\
model_name_or_path: org/base
torch_dtype: bfloat16
chat_template: "{% for m in messages %}\\n{{ m.content }}{% endfor %}"
dataset_mixture:
  datasets:
    - {id: org/pairs, config: default, split: train_prefs, columns: [chosen, rejected], weight: 1.0}
    - {id: org/pairs, config: default, split: test_prefs, columns: [chosen, rejected], weight: 1.0}
    - {id: org/more, split: train, weight: 0.25}
  test_split_size: 2000
  seed: 0
dataset_num_proc: 12
bf16: true
beta: 0.01
do_eval: true
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
hub_model_id: org/out
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
loss_type: [hinge]
lr_scheduler_type: cosine
max_length: 512
max_prompt_length: 256
num_train_epochs: 1
optim: adamw_bnb_8bit
output_dir: data/out
per_device_train_batch_size: 8
per_device_eval_batch_size: 4
push_to_hub: true
report_to: [wandb]
run_name: mine
save_strategy: "no"
seed: 7
warmup_ratio: 0.1
"""


def test_a_handbook_recipe(tmp_path):
    new, found = recipe(tmp_path, HANDBOOK, devices=4)
    assert (found.tool, found.method) == ("alignment-handbook", "dpo")
    assert (new.output_dir, new.seed) == ("data/out", 7)
    assert (new.model.name_or_path, new.model.dtype) == ("org/base", "bfloat16")
    assert new.model.chat_template == "{% for m in messages %}\n{{ m.content }}{% endfor %}"
    assert new.lora is None
    assert (new.dpo.beta, new.dpo.loss_type) == (0.01, "hinge")
    train = [(s.path, s.name, s.split, s.fraction) for s in new.data.train]
    assert train == [
        ("org/pairs", "default", "train_prefs", 1.0),
        ("org/more", None, "train", 0.25),
    ]
    assert [(s.path, s.split) for s in new.data.eval] == [("org/pairs", "test_prefs")]
    assert (new.data.max_length, new.data.num_proc) == (512, 12)
    training = new.training
    assert training.global_batch_size == 64  # 8 x 2 x 4
    assert training.per_device_train_batch_size == 8
    assert training.per_device_eval_batch_size == 4
    assert (training.learning_rate, training.lr_scheduler_type) == (5e-7, "cosine")
    assert (training.warmup_ratio, training.eval_steps, training.logging_steps) == (0.1, 100, 10)
    assert training.optim == "adamw_8bit"
    assert (new.logging.report_to, new.logging.run_name) == (["wandb"], "mine")


def test_both_lists_and_the_remarks_are_told(tmp_path):
    _, found = recipe(tmp_path, HANDBOOK, devices=4)
    renamed = {r.key: (r.path, r.value) for r in found.renamed}
    assert renamed["model_name_or_path"] == ("model.name_or_path", "org/base")
    assert renamed["optim"] == ("training.optim", "adamw_8bit")
    assert renamed["gradient_accumulation_steps"] == ("training.global_batch_size", 64)
    assert "learning_rate" not in renamed  # neither name nor value changed
    dropped = {d.key: d.reason for d in found.dropped}
    assert dropped.keys() == {
        *("bf16", "do_eval", "eval_strategy", "gradient_checkpointing_kwargs", "hub_model_id"),
        *("log_level", "max_prompt_length", "push_to_hub", "save_strategy"),
        *("dataset_mixture.seed", "dataset_mixture.test_split_size"),
    }
    assert "data.eval is given" in dropped["do_eval"]
    said = " ".join(found.remarks)
    assert "figures are not comparable" in said
    assert "per-device 8 x accumulation 2 x 4 devices" in said
    assert "rows of a fraction" in said
    assert "every 500 steps" in said
    header = found.text.partition("output_dir")[0].replace("\n#   ", " ")
    assert all(f"# - {remark}" in header for remark in found.remarks)
    assert header.startswith("# Migrated from alignment-handbook's config.yaml, for prefcli dpo.")


def test_without_devices_everything_else_is_told_too(tmp_path):
    text = HANDBOOK + "neftune_noise_alpha: 5\nfrobnicate: 1\nmax_grad_norm: -1\n"
    found = problems(tmp_path, text, devices=None)
    assert found.keys() == {
        *("gradient_accumulation_steps", "neftune_noise_alpha", "frobnicate", "max_grad_norm"),
    }
    place, message = found["gradient_accumulation_steps"]
    assert place == "17:1"
    assert "pass --devices N (per-device 8 x accumulation 2 x N)" in message
    assert found["frobnicate"][0] == "40:1"
    assert "does not know this key" in found["frobnicate"][1]
    # Refused by the schema, told of the key it came from.
    assert found["max_grad_norm"][0] == "41:16"
    assert "training.max_grad_norm: -1 is out of range" in found["max_grad_norm"][1]


MINIMAL = """\
model_name_or_path: m
dataset_name: d
output_dir: o
learning_rate: 1e-6
num_train_epochs: 1
"""


def test_what_is_left_out_is_trls_default_and_not_ours(tmp_path):
    text = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\nuse_peft: true\n"
    text += "lora_target_modules: all-linear\n"
    new, found = recipe(tmp_path, text, method="kto")
    assert new.training.num_train_epochs == 3
    assert new.training.learning_rate == 1e-6
    assert new.training.lr_scheduler_type == "linear"
    assert new.training.warmup == 0
    assert (new.kto.desirable_weight, new.kto.undesirable_weight) == (1, 1)
    assert (new.lora.rank, new.lora.alpha, new.lora.dropout) == (16, 32, 0.05)
    (said,) = [remark for remark in found.remarks if "own defaults" in remark]
    assert "num_train_epochs 3.0" in said
    assert "warmup_ratio" in said


@pytest.mark.parametrize(
    ("added", "name", "method"),
    [
        ("packing: true", "c.yaml", "sft"),
        ("max_seq_length: 64", "c.yaml", "sft"),
        ("loss_type: sigmoid", "c.yaml", "dpo"),
        ("rpo_alpha: 0.1", "c.yaml", "dpo"),
        ("loss_type: [ipo]", "c.yaml", "ipo"),
        ("loss_type: ipo", "dpo/c.yaml", "ipo"),
        ("desirable_weight: 1.0", "c.yaml", "kto"),
        ("loss_type: apo_zero_unpaired", "c.yaml", "kto"),
        ("loss_type: simpo", "c.yaml", "simpo"),
        ("gamma_beta_ratio: 0.5", "c.yaml", "simpo"),
        ("beta: 0.2", "orpo/config_full.yaml", "orpo"),
        ("beta: 0.2", "sft/config-dpo.yaml", "dpo"),
        ("seed: 1", "sft/c.yaml", "sft"),
    ],
)
def test_the_method_by_keys_and_path(tmp_path, added, name, method):
    assert recipe(tmp_path, f"{MINIMAL}{added}\n", name)[1].method == method


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("seed: 1", "one of sft, dpo, ipo, kto, orpo, simpo"),
        ("beta: 0.2", "one of dpo, ipo, kto, orpo, simpo"),
        ("packing: true\nbeta: 0.1", "its keys do not agree"),
    ],
)
def test_doubt_about_the_method_is_an_error(tmp_path, added, said):
    found = problems(tmp_path, f"{MINIMAL}{added}\n")
    assert said in found[None][1]
    assert "--method" in found[None][1]


def test_the_command_line_settles_the_method_but_does_not_contradict(tmp_path):
    new, _ = recipe(tmp_path, f"{MINIMAL}loss_type: ipo\nbeta: 0.3\n", method="dpo")
    assert (new.dpo.loss_type, new.dpo.beta, new.ipo) == ("ipo", 0.3, None)
    new, _ = recipe(tmp_path, f"{MINIMAL}beta: 0.3\n", method="orpo")
    assert new.orpo.lambda_ == 0.3
    found = problems(tmp_path, f"{MINIMAL}packing: true\n", method="dpo")
    assert "--method dpo, but by its keys the file is for sft" in found[None][1]


def test_losses(tmp_path):
    new, _ = recipe(tmp_path, f"{MINIMAL}loss_type: sigmoid\nrpo_alpha: 0.005\n")
    assert (new.dpo.loss_type, new.dpo.loss_weights) == (["sigmoid", "sft"], [1.0, 0.005])
    new, _ = recipe(tmp_path, f"{MINIMAL}loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.1]\n")
    assert (new.dpo.loss_type, new.dpo.loss_weights) == (["sigmoid", "sft"], [1.0, 0.1])
    new, _ = recipe(tmp_path, f"{MINIMAL}gamma_beta_ratio: 0.4\nbeta: 2.5\nloss_type: sigmoid\n")
    assert (new.simpo.beta, new.simpo.gamma, new.simpo.cpo_alpha) == (2.5, 1.0, 0.0)
    new, _ = recipe(tmp_path, f"{MINIMAL}loss_type: simpo\nsimpo_gamma: 0.7\n")
    assert (new.simpo.beta, new.simpo.gamma, new.simpo.cpo_alpha) == (0.1, 0.7, 1.0)  # CPO's
    new, _ = recipe(tmp_path, f"{MINIMAL}loss_type: sigmoid\nf_alpha_divergence_coef: 0.5\n")
    assert new.dpo.f_alpha_divergence_coef is None  # nothing reads it
    found = problems(tmp_path, f"{MINIMAL}loss_type: sigmoid\nlabel_smoothing: 0.1\n")
    assert "has no effect with loss_type" in found["label_smoothing"][1]
    found = problems(tmp_path, f"{MINIMAL}loss_type: sigmiod\n", method="dpo")
    assert "did you mean sigmoid?" in found["loss_type"][1]


def test_lora_and_quantisation(tmp_path):
    text = f"{MINIMAL}loss_type: sigmoid\nlora_r: 8\nlora_alpha: 16\n"
    new, found = recipe(tmp_path, text)
    assert new.lora is None
    assert {d.key for d in found.dropped} >= {"lora_r", "lora_alpha"}
    text += "use_peft: true\nload_in_4bit: true\nlora_target_modules: [q_proj]\nuse_rslora: true\n"
    new, _ = recipe(tmp_path, text)
    assert (new.lora.rank, new.lora.alpha, new.lora.target_modules) == (8, 16, ["q_proj"])
    assert new.lora.use_rslora
    assert new.model.quantization == "4bit"
    found = problems(tmp_path, text.replace("lora_target_modules: [q_proj]\n", ""))
    assert "all-linear" in found["use_peft"][1]
    # The schema's rule, told of the key that broke it.
    found = problems(tmp_path, f"{MINIMAL}loss_type: sigmoid\nload_in_8bit: true\n")
    assert "add a lora section" in found["load_in_8bit"][1]


def test_trl_data(tmp_path):
    text = f"{MINIMAL}loss_type: sigmoid\ndataset_config: c\ndataset_train_split: a\n"
    new, found = recipe(tmp_path, f"{text}dataset_test_split: b\n")
    assert (new.data.train[0].name, new.data.train[0].split, new.data.eval) == ("c", "a", None)
    assert "evaluation is off" in {d.key: d.reason for d in found.dropped}["dataset_test_split"]
    new, found = recipe(tmp_path, f"{text}eval_strategy: epoch\n")
    assert new.data.eval[0].split == "test"
    assert new.training.eval_steps is None
    assert any("steps of an epoch are not in the file" in remark for remark in found.remarks)
    new, _ = recipe(
        tmp_path,
        f"{MINIMAL}dataset_text_field: story\n".replace("dataset_name: d", "dataset_name: d.jsonl"),
    )
    assert new.data.train[0].columns == {"text": "story"}


def test_mixtures(tmp_path):
    start = "model_name_or_path: m\noutput_dir: o\nloss_type: sigmoid\neval_strategy: steps\n"
    mixture = "dataset_mixture:\n  datasets:\n    - {id: a, split: train}\n"
    new, found = recipe(tmp_path, f"{start}{mixture}  test_split_size: 0.1\n")
    assert new.data.eval is None
    assert any("name held-out data as data.eval" in remark for remark in found.remarks)
    new, _ = recipe(tmp_path, f"{start}{mixture}    - {{id: a, split: test}}\n")
    assert [s.split for s in new.data.train] == ["train", "test"]  # nothing was split off
    found = problems(
        tmp_path, f"{start}{mixture}    - {{id: b, split: test}}\n  test_split_size: 9\n"
    )
    assert (
        "b is in the mixture by its test split alone" in (found["dataset_mixture.datasets[1]"][1])
    )
    found = problems(
        tmp_path, f"{start}{mixture}    - {{id: c, columns: [messages, tools], weight: 2.0}}\n"
    )
    assert "'tools'" in found["dataset_mixture.datasets[1].columns"][1]
    new, _ = recipe(
        tmp_path, f"{start}dataset_mixer:\n  org/a: 0.5\ndataset_splits: [train_p, test_p]\n"
    )
    assert (new.data.train[0].split, new.data.train[0].fraction) == ("train_p", 0.5)
    assert (new.data.eval[0].split, new.data.eval[0].fraction) == ("test_p", 1.0)


@pytest.mark.parametrize(
    ("added", "key", "said"),
    [
        ("trust_remote_code: true", "trust_remote_code", "pinned commit"),
        ("torch_dtype: auto", "torch_dtype", "write the type"),
        ("report_to: all", "report_to", "depends on the machine"),
        ("report_to: [wandb, neptune]", "report_to", "does not report to neptune"),
        ("dataset_streaming: true", "dataset_streaming", "from files"),
        ("packing_strategy: wrapped", "packing_strategy", "whole rows"),
        ("truncation_mode: keep_end", "truncation_mode", "end of what is too long"),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs.num_cycles", "no such"),
        ("lr_scheduler_type: cosine_with_restarts", "lr_scheduler_type", "is none of linear"),
        ("load_best_model_at_end: true", "load_best_model_at_end", "last weights"),
        ("per_device_train_batch_size: many", "per_device_train_batch_size", "whole number"),
        ("disable_dropout: false", "disable_dropout", "without dropout"),
        ("output_dir: ${x}", "output_dir", "interpolation"),
    ],
)
def test_what_has_no_counterpart_is_an_error(tmp_path, added, key, said):
    text = "\n".join(line for line in MINIMAL.splitlines() if line.split(":")[0] not in added)
    found = problems(tmp_path, f"{text}\nloss_type: sigmoid\n{added}\n")
    assert found.keys() == {key}
    assert said in found[key][1]


@pytest.mark.parametrize(
    "added",
    ["trust_remote_code: false", "eval_strategy: no", "report_to: none", "neftune_noise_alpha:"],
)
def test_what_is_off_is_no_error(tmp_path, added):
    recipe(tmp_path, f"{MINIMAL}loss_type: sigmoid\n{added}\n")


@pytest.mark.parametrize("given", ["min_lr_rate: 0.1", "min_lr: 1e-7"])
def test_a_cosine_that_ends_above_zero(tmp_path, given):
    text = f"{MINIMAL}loss_type: sigmoid\nlr_scheduler_type: cosine_with_min_lr\n"
    text += f"lr_scheduler_kwargs: {{{given}}}\n"
    new, _ = recipe(tmp_path, text)
    assert new.training.lr_scheduler_type == "cosine_with_min_lr"
    assert new.training.min_lr_ratio == pytest.approx(0.1)  # of a learning rate of 1e-6


def test_another_precision_is_remarked(tmp_path):
    for line, asked in [("fp16: true", "float16"), ("bf16: false", "float32")]:
        _, found = recipe(tmp_path, f"{MINIMAL}loss_type: sigmoid\n{line}\n")
        assert any(f"write model.dtype: {asked}" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    "text",
    [
        "report_to: 3",
        "loss_type: {}",
        "dataset_mixer: {a: half}",
        "dataset_mixture: {datasets: [{id: 3}]}",
        "dataset_mixture: {datasets: [{id: a, columns: 3}]}",
        "lr_scheduler_kwargs: 3",
        "datasets: 3",
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(tmp_path, text):
    key = text.partition(":")[0]
    lines = [line for line in MINIMAL.splitlines() if not line.startswith("dataset")]
    start = "" if key == "loss_type" else "loss_type: sigmoid\n"
    found = problems(tmp_path, "\n".join(lines) + f"\n{start}{text}\n", method="dpo")
    assert any((path or "").startswith(key) for path in found)


TOKEN = "hf_" + "aB3" * 11


def test_tokens_are_never_echoed(tmp_path):
    text = f"{MINIMAL}loss_type: sigmoid\nhub_token: {TOKEN}\n"
    _, found = recipe(tmp_path, text)
    assert TOKEN not in str(found)
    found = migrate(write(tmp_path, f"{text}run_name: {TOKEN}\n{TOKEN}: 1\n"), devices=1)
    assert TOKEN not in str(found)
    assert any("looks like an access token" in p.message for p in found.problems)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_path_of_a_table_is_in_the_schema(tool):
    known = {*all_paths()}
    for key, translation in tool.table.items():
        assert {*translation.paths} <= known, key
        if isinstance(translation, Refuse | MultiKeyRule) or key not in FOREIGN:
            continue
        # foreign.py, which names our key for a foreign one in a recipe, says the same.
        if translation.paths and FOREIGN[key].partition(".")[0] not in METHODS:
            assert FOREIGN[key] in translation.paths, key


def test_what_the_file_lacks_is_told(tmp_path):
    text = MINIMAL.replace("dataset_name: d\n", "").replace("output_dir: o\n", "")
    found = problems(tmp_path, f"{text}loss_type: sigmoid\n")
    assert {key: place for key, (place, _) in found.items()} == {"data": "1:1", "output_dir": "1:1"}
    assert "nothing in the file becomes it" in found["data"][1]


def test_a_recipe_and_a_stranger_are_told_apart(tmp_path):
    for text, said in [("model: {}\ndata: {}\n", "a recipe already"), ("a: 1\n", "keys of none")]:
        with pytest.raises(Exception, match=said):
            migrate(write(tmp_path, text))


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", "migrate", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command(monkeypatch, capsys, tmp_path):
    source, output = write(tmp_path, HANDBOOK), tmp_path / "new" / "r.yaml"
    assert run(monkeypatch, source, "--devices", "8") == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Migrated from")
    assert "bf16 dropped" in err
    assert "-> model.name_or_path" in err

    assert run(monkeypatch, source, "--devices", "8", "--output", str(output)) == 0
    assert capsys.readouterr().out == ""
    assert output.read_text("utf-8") == out
    assert load(str(output)).recipe.training.global_batch_size == 128
    assert run(monkeypatch, source, "--devices", "8", "--output", str(output)) == 2
    assert "exists already" in capsys.readouterr().err

    assert run(monkeypatch, source) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "pass --devices N" in err
    assert run(monkeypatch, source, "--method", "ppo") == 2


def test_the_command_as_json(monkeypatch, capsys, tmp_path):
    source = write(tmp_path, HANDBOOK)
    assert run(monkeypatch, source, "--devices", "8", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tool"], document["method"]) == ("alignment-handbook", "dpo")
    assert document["recipe"].startswith("# Migrated")
    assert {"key", "place", "path", "value"} == document["renamed"][0].keys()
    assert {"key", "place", "reason"} == document["dropped"][0].keys()
    assert document["problems"] == []
    assert run(monkeypatch, source, "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] is None
    assert document["problems"][0]["path"] == "gradient_accumulation_steps"
