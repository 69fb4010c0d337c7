"""Migration of alignment-handbook's and trl's configs, and the command."""

import json
import re
import sys
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.aliases import ALIASES, UNSUPPORTED
from prefcli.recipe.load import load
from prefcli.recipe.migrate import TOOLS, migrate
from prefcli.recipe.migrate import draft as draft_module
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import Drop, Refuse, Together
from prefcli.recipe.migrate.tools import by_trl_names
from prefcli.recipe.source_map import Places
from prefcli.recipe.suggestions import all_paths
from tests.support.migration import (
    line_and_column,
    migrated,
    problems_of,
    write,
)

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


def test_migrate_handbook_config_translates_every_key(tmp_path):
    recipe, migration = migrated(tmp_path, HANDBOOK, devices=4)
    assert (migration.tool, migration.method) == ("alignment-handbook", "dpo")
    assert (recipe.output_dir, recipe.seed) == ("data/out", 7)
    assert (recipe.model.name_or_path, recipe.model.dtype) == ("org/base", "auto")
    assert recipe.model.chat_template == "{% for m in messages %}\n{{ m.content }}{% endfor %}"
    assert recipe.lora is None
    assert (recipe.dpo.beta, recipe.dpo.loss_type) == (0.01, "hinge")
    train = [(s.path, s.name, s.split, s.fraction) for s in recipe.data.train]
    assert train == [
        ("org/pairs", "default", "train_prefs", 1.0),
        ("org/more", None, "train", 0.25),
    ]
    assert [(s.path, s.split) for s in recipe.data.eval] == [("org/pairs", "test_prefs")]
    assert (recipe.data.max_length, recipe.data.num_proc) == (512, 12)
    training = recipe.training
    assert training.global_batch_size == 64  # 8 x 2 x 4
    assert training.per_device_train_batch_size == 8
    assert training.per_device_eval_batch_size == 4
    assert (training.learning_rate, training.lr_scheduler_type) == (5e-7, "cosine")
    assert (training.warmup_ratio, training.eval_steps, training.logging_steps) == (0.1, 100, 10)
    assert training.optim == "adamw_8bit"
    assert (recipe.logging.report_to, recipe.logging.run_name) == (["wandb"], "mine")
    assert (recipe.push_to_hub.repo_id, recipe.push_to_hub.private) == ("org/out", True)


def test_migrate_handbook_config_lists_renamed_and_dropped_keys(tmp_path):
    _, migration = migrated(tmp_path, HANDBOOK, devices=4)
    renamed = {r.key: (r.path, r.value) for r in migration.renamed}
    assert renamed["model_name_or_path"] == ("model.name_or_path", "org/base")
    assert renamed["optim"] == ("training.optim", "adamw_8bit")
    assert renamed["gradient_accumulation_steps"] == ("training.global_batch_size", 64)
    assert renamed["hub_model_id"] == ("push_to_hub.repo_id", "org/out")
    assert "learning_rate" not in renamed  # neither name nor value changed
    assert {d.key for d in migration.dropped} == {
        *("bf16", "do_eval", "eval_strategy", "gradient_checkpointing_kwargs"),
        *("log_level", "max_prompt_length", "push_to_hub", "save_strategy", "torch_dtype"),
        *("dataset_mixture.seed", "dataset_mixture.test_split_size"),
    }


def test_migrate_handbook_config_writes_notes_to_the_header(tmp_path):
    _, migration = migrated(tmp_path, HANDBOOK, devices=4)
    notes = " ".join(migration.notes)
    assert "results are not comparable" in notes
    assert "per-device 8 x accumulation 2 x 4 devices" in notes
    assert "a part of the rows" in notes
    assert "every 500 steps" in notes
    assert "push_to_hub.private: false" in notes
    header = migration.text.partition("output_dir")[0].replace("\n#   ", " ")
    assert all(f"# - {note}" in header for note in migration.notes)
    assert header.startswith("# Migrated from alignment-handbook's config.yaml, for prefcli dpo.")


def test_migrate_without_devices_reports_all_other_problems(tmp_path):
    text = HANDBOOK + "neftune_noise_alpha: 5\nfrobnicate: 1\nmax_grad_norm: -1\n"
    problems = problems_of(tmp_path, text, devices=None)
    assert {key: line_and_column(problem) for key, problem in problems.items()} == {
        "gradient_accumulation_steps": "17:1",
        "neftune_noise_alpha": "39:1",
        "frobnicate": "40:1",
        "max_grad_norm": "41:16",  # refused by the schema
    }
    assert problems["gradient_accumulation_steps"].code == "RCP159"
    assert problems["frobnicate"].code == "RCP155"
    assert problems["neftune_noise_alpha"].code == "RCP156"
    assert "per-device 8 x accumulation 2 x N" in problems["gradient_accumulation_steps"].hint
    assert "becomes training.max_grad_norm: -1" in problems["max_grad_norm"].message


MINIMAL = """\
model_name_or_path: m
dataset_name: d
output_dir: o
learning_rate: 1e-6
num_train_epochs: 1
"""
SIGMOID = f"{MINIMAL}loss_type: sigmoid\n"


def test_migrate_omitted_keys_take_trls_defaults(tmp_path):
    text = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\nuse_peft: true\n"
    text += "lora_target_modules: all-linear\n"
    recipe, migration = migrated(tmp_path, text, method="kto")
    assert recipe.training.num_train_epochs == 3
    assert recipe.training.learning_rate == 1e-6
    assert recipe.training.lr_scheduler_type == "linear"
    assert recipe.training.warmup == 0
    assert (recipe.kto.desirable_weight, recipe.kto.undesirable_weight) == (1, 1)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (16, 32, 0.05)
    (note,) = [note for note in migration.notes if "trl's defaults" in note]
    assert "num_train_epochs 3.0" in note
    assert "warmup_ratio" in note


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
        ("cpo_alpha: 0.5", "c.yaml", "cpo"),
        ("loss_type: hinge\ncpo_alpha: 1.0", "c.yaml", "cpo"),
        ("loss_type: simpo\ncpo_alpha: 1.0", "c.yaml", "simpo"),
        ("loss_type: alphapo\nalpha: 0.25", "c.yaml", "cpo"),
        ("gamma_beta_ratio: 0.5", "c.yaml", "simpo"),
        ("beta: 0.2", "orpo/config_full.yaml", "orpo"),
        ("beta: 0.2", "sft/config-dpo.yaml", "dpo"),
        ("seed: 1", "sft/c.yaml", "sft"),
    ],
)
def test_migrate_finds_the_method_by_keys_and_path(tmp_path, added, name, method):
    assert migrated(tmp_path, f"{MINIMAL}{added}\n", name)[1].method == method


@pytest.mark.parametrize(
    ("added", "methods"),
    [
        ("seed: 1", "sft|dpo|ipo|kto|orpo|simpo|cpo|reward|rloo"),
        ("beta: 0.2", "dpo|ipo|kto|orpo|simpo|cpo|rloo"),
        ("packing: true\nbeta: 0.1", "|".join(METHODS)),
    ],
)
def test_migrate_unclear_method_asks_for_the_option(tmp_path, added, methods):
    problem = problems_of(tmp_path, f"{MINIMAL}{added}\n")[None]
    assert problem.code == "RCP152"
    assert problem.hint == f"pass --method {methods}"


def test_migrate_trl_dataset(tmp_path):
    text = f"{SIGMOID}dataset_config: c\ndataset_train_split: a\n"
    recipe, migration = migrated(tmp_path, f"{text}dataset_test_split: b\n")
    (source,) = recipe.data.train
    assert (source.name, source.split, recipe.data.eval) == ("c", "a", None)
    assert "dataset_test_split" in {d.key for d in migration.dropped}
    recipe, migration = migrated(tmp_path, f"{text}eval_strategy: epoch\n")
    assert recipe.data.eval[0].split == "test"
    assert recipe.training.eval_steps is None
    assert any("write training.eval_steps" in note for note in migration.notes)
    text = f"{MINIMAL}dataset_text_field: story\n"
    recipe, _ = migrated(tmp_path, text.replace("dataset_name: d", "dataset_name: d.jsonl"))
    assert recipe.data.train[0].columns == {"text": "story"}


MIXTURE = """\
model_name_or_path: m
output_dir: o
loss_type: sigmoid
eval_strategy: steps
dataset_mixture:
  datasets:
    - {id: a, split: train}
"""


def test_migrate_mixture_without_a_split_size_trains_on_test_splits(tmp_path):
    recipe, _ = migrated(tmp_path, f"{MIXTURE}    - {{id: a, split: test}}\n")
    assert [s.split for s in recipe.data.train] == ["train", "test"]


EVALUATED = f"{SIGMOID}eval_strategy: steps\neval_steps: 50\n"


def test_migrate_early_stopping_by_an_unmeasured_metric_is_refused(tmp_path):
    text = f"{EVALUATED}load_best_model_at_end: true\nmetric_for_best_model: bleu\n"
    assert problems_of(tmp_path, text).keys() == {"metric_for_best_model"}


@pytest.mark.parametrize(
    "added",
    ["trust_remote_code: false", "eval_strategy: no", "report_to: none", "neftune_noise_alpha:"],
)
def test_migrate_key_that_is_off_is_dropped(tmp_path, added):
    migrated(tmp_path, f"{SIGMOID}{added}\n")


@pytest.mark.parametrize(("line", "dtype"), [("fp16: true", "float16"), ("bf16: false", "float32")])
def test_migrate_other_precision_adds_a_note(tmp_path, line, dtype):
    _, migration = migrated(tmp_path, f"{SIGMOID}{line}\n")
    assert any(f"write model.dtype: {dtype}" in note for note in migration.notes)


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
def test_migrate_value_of_the_wrong_type_is_refused(tmp_path, text):
    key = text.partition(":")[0]
    lines = [line for line in MINIMAL.splitlines() if not line.startswith("dataset")]
    start = "" if key == "loss_type" else "loss_type: sigmoid\n"
    problems = problems_of(tmp_path, "\n".join(lines) + f"\n{start}{text}\n", method="dpo")
    assert any((path or "").startswith(key) for path in problems)


TOKEN = "hf_" + "aB3" * 11


def test_migrate_token_of_a_dropped_key_is_hidden(tmp_path):
    _, migration = migrated(tmp_path, f"{SIGMOID}hub_token: {TOKEN}\n")
    assert TOKEN not in str(migration)


def test_migrate_token_in_another_key_is_refused_and_hidden(tmp_path):
    text = f"{SIGMOID}run_name: {TOKEN}\n{TOKEN}: 1\n"
    migration = migrate(write(tmp_path, text), devices=1)
    assert TOKEN not in str(migration)
    assert "run_name" in {problem.path for problem in migration.problems}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_two_names_of_a_setting_with_other_values_are_a_problem(tool):
    names = tool.trl_names
    for name, trl_name in names.items():
        for other in (n for n, trl in names.items() if trl == trl_name and n != name):
            entries = {tuple(name.split(".")): 1, tuple(other.split(".")): 2}
            _, _, problems = by_trl_names(tool, entries, Places("c.yaml"))
            assert [p.code for p in problems] == ["RCP168"], (name, other)
            assert name in problems[0].hint
            assert other in problems[0].hint


def test_two_keys_that_write_one_path_are_a_problem_unless_they_agree():
    draft = Draft("trl", {"a": 1, "b": 2, "c": 1}, Places("c.yaml"), "dpo")
    for key, value in draft.data.items():
        draft.put("dpo.beta", value, key)
    assert (draft.values, draft.origins) == ({"dpo.beta": 1}, {"dpo.beta": ("a",)})
    assert {p.path: p.code for p in draft.problems} == {"b": "RCP168"}
    assert [d.key for d in draft.dropped] == ["c"]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_rule_table_paths_are_in_the_schema(tool):
    known = {*all_paths()}
    for key, rule in tool.table.items():
        assert {*rule.paths} <= known, key
        if isinstance(rule, Refuse | Together) or key not in ALIASES:
            continue
        # aliases.py, which suggests prefcli's key for a foreign one in a recipe, agrees.
        if rule.paths and ALIASES[key].partition(".")[0] not in METHODS:
            assert ALIASES[key] in rule.paths, key


def test_paths_that_functions_write_are_in_the_schema():
    sources = [path.read_text() for path in Path(draft_module.__file__).parent.glob("*.py")]
    written = re.findall(r"\.put(?:_given)?\(\s*\"([a-z_.]+)\"", "".join(sources))
    assert len(written) > 40
    assert {*written} - {*all_paths()} == set()


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_rule_table_does_not_drop_or_refuse_a_key_of_the_schema(tool):
    """A key that the schema has is translated; so is a key that has an alias there.

    batch_size of axolotl counts the rows of one device; dpo_label_smoothing of LLaMA-Factory
    applies to the sigmoid loss, where trl no longer has it. reward_model of axolotl names a method,
    and sampling in other tools is not that of `pairs`.
    """
    names = {path.rpartition(".")[2] for path in all_paths()}
    rejected = {key for key, rule in tool.table.items() if isinstance(rule, Drop | Refuse)}
    other_meaning = {
        "batch_size",
        "dpo_label_smoothing",
        "temperature",
        "max_new_tokens",
        "top_p",
        "reward_model",
        "compile",
    }
    assert rejected & names - other_meaning == set()
    assert rejected & ALIASES.keys() - UNSUPPORTED.keys() - other_meaning == set()


def test_unsupported_keys_are_not_in_the_schema():
    assert UNSUPPORTED.keys() & {path.rpartition(".")[2] for path in all_paths()} == set()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("model: {name_or_path: a}\ndata: {}\n", "RCP151"),
        ("dpo: {}\ndata: {}\n", "RCP151"),
        ("model: {}\ndata: {}\n", "RCP150"),
        ("tokenizer: {_component_: a.b}\n", "RCP173"),
    ],
)
def test_migrate_file_of_no_tool_is_refused(tmp_path, text, code):
    with pytest.raises(RecipeError) as error:
        migrate(write(tmp_path, text))
    assert error.value.problems[0].code == code


def run_command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefcli", "migrate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_command_prints_the_recipe_and_the_changes(monkeypatch, capsys, tmp_path):
    assert run_command(monkeypatch, write(tmp_path, HANDBOOK), "--devices", "8") == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Migrated from")
    assert "bf16 dropped" in err
    assert "-> model.name_or_path" in err


def test_command_with_output_writes_a_new_file_only(monkeypatch, capsys, tmp_path):
    config, output = write(tmp_path, HANDBOOK), tmp_path / "new" / "r.yaml"
    arguments = (config, "--devices", "8", "--output", str(output))
    assert run_command(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == ""
    assert load(str(output)).recipe.training.global_batch_size == 128
    assert run_command(monkeypatch, *arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_command_with_problems_prints_no_recipe(monkeypatch, capsys, tmp_path):
    config = write(tmp_path, HANDBOOK)
    assert run_command(monkeypatch, config) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "[RCP159]" in err
    assert run_command(monkeypatch, config, "--method", "ppo") == 2


def test_command_with_json_prints_one_document(monkeypatch, capsys, tmp_path):
    config = write(tmp_path, HANDBOOK)
    assert run_command(monkeypatch, config, "--devices", "8", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tool"], document["method"]) == ("alignment-handbook", "dpo")
    assert document["recipe"].startswith("# Migrated")
    assert {"key", "place", "path", "value"} == document["renamed"][0].keys()
    assert {"key", "place", "reason"} == document["dropped"][0].keys()
    assert document["problems"] == []
    assert run_command(monkeypatch, config, "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] is None
    assert document["problems"][0]["code"] == "RCP159"


def test_validate_of_a_config_names_migrate(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["prefcli", "validate", write(tmp_path, HANDBOOK)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "this is a config of alignment-handbook, not a recipe [RCP172]" in err
    assert err.count("error:") == 1
