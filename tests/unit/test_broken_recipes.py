"""Keys and values: where the mistake is, what it is, what to write instead."""
# ruff: noqa: E501 - the tables have a case a line

import pytest

from prefcli.cli.main import refuse_renamed
from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.recipe.aliases import ALIASES, RENAMED, UNSUPPORTED
from prefcli.recipe.suggestions import all_paths
from tests.support.broken_recipes import GOOD, added, mistakes, swapped, table, write

UNKNOWN = table(
    added("misspelt section", "trainig: {}", "6:1", "trainig", "RCP001 | no such key | mean training?"),
    added("misspelt key", "training: {learning_rat: 1}", "6:12", "training.learning_rat", "RCP001 | mean learning_rate?"),
    added("another case", "training: {Max_Steps: 1}", "6:12", "training.Max_Steps", "RCP001 | mean max_steps?"),
    swapped("in a source", "a.jsonl", "a.jsonl, splitt: b", "5:26", "data.train.splitt", "RCP001 | mean split?"),
    swapped("in a list", "{path: a.jsonl}", "[{path: a}, {path: b, nmae: c}]", "5:32", "data.train[1].nmae", "RCP001 | mean name?"),
    added("deep below it", "x: {y: {z: 1}}", "6:1", "x", "RCP001"),
    added("key of a section", "learning_rate: 1e-6", "6:1", "learning_rate", "RCP001 | belongs to training.learning_rate"),
    added("key of three sections", "beta: 1", "6:1", "beta", "RCP001"),
    added("key of the top", "training: {seed: 1}", "6:12", "training.seed", "RCP001"),
    added("of another section", "training: {max_length: 9}", "6:12", "training.max_length", "RCP001"),
    added("torch_dtype", "torch_dtype: auto", "6:1", "torch_dtype", "RCP001"),
    added("torch_dtype, dashed", "torch-dtype: auto", "6:1", "torch-dtype", "RCP001"),
    swapped("torch_dtype inside", "some/model", "m, torch_dtype: a", "2:26", "model.torch_dtype", "RCP001"),
    added("lora_r", "lora_r: 8", "6:1", "lora_r", "RCP001"),
    added("lora.r", "lora: {r: 8}", "6:8", "lora.r", "RCP001"),
    added("base_model", "base_model: m", "6:1", "base_model", "RCP001"),
    added("max_seq_length", "max_seq_length: 9", "6:1", "max_seq_length", "RCP001"),
    added("dataset_mixer", "dataset_mixer: {a: 1}", "6:1", "dataset_mixer", "RCP001"),
    added("accumulation", "training: {gradient_accumulation_steps: 2}", "6:12",
          "training.gradient_accumulation_steps", "RCP001"),
    added("warmup", "training: {warmup: 0.1}", "6:12", "training.warmup", "RCP001"),
    added("lr", "training: {lr: 1e-6}", "6:12", "training.lr", "RCP001"),
    added("trust_remote_code", "trust_remote_code: true", "6:1", "trust_remote_code", "RCP001 | it belongs to model.trust_remote_code"),
    added("load_in_4bit", "load_in_4bit: true", "6:1", "load_in_4bit", "RCP001 | write model.quantization: 4bit"),
    added("dotted key", "training.max_steps: 3", "6:1", "training.max_steps", "RCP001 | inside the section `training:`"),
    added("merge key", "<<: {seed: 1}", "6:1", "<<", "RCP001"),
    added("number as key", "1: 2", "6:1", "1", "RCP001"),
    added("truth as key", "true: 2", "6:1", "true", "RCP001"),
    added("the attribute of lambda", "orpo: {lambda_: 0.2}", "6:8", "orpo.lambda_", "RCP001 | mean lambda?"),
    added("simpo_gamma", "simpo: {simpo_gamma: 1}", "6:9", "simpo.simpo_gamma", "RCP001"),
    added("a key simpo lacks", "simpo: {label_smoothing: 0.1}", "6:9", "simpo.label_smoothing", "RCP001"),
    added("no space in braces", "training: {max_steps:1}", "6:23", "training.max_steps:1", "RCP007 | space after the colon"),
    added("equals in braces", "training: {max_steps=1}", "6:23", "training.max_steps=1", "RCP007"),
)  # fmt: skip

KEYS = table(
    added("twice", "dpo: {}", "6:1", "dpo", "RCP008"),
    added("twice, nested", "lora:\n  rank: 8\n  alpha: 1\n  rank: 9", "9:3", "lora.rank", "RCP008"),
    added("twice, in braces", "lora: {rank: 8, rank: 8}", "6:17", "lora.rank", "RCP008"),
    added("twice, quoted", "'seed': 1\nseed: 2", "7:1", "seed", "RCP008"),
    added("list as key", "? [a, b]\n: 1", "6:3", None, "RCP009 | a key must be a plain word | `key: value`"),
    added("section as key", "{a}: 1", "6:1", None, "RCP009"),
    added("empty key", "'': 1", "6:1", None, "RCP009"),
    added("escape codes in a key", '"a\\e[31m": 1', "6:1", None, "RCP009"),
    swapped("missing top key", "output_dir: runs/x\n", "", "1:1", "output_dir", "RCP003 | is missing"),
    swapped("missing inner key", "name_or_path: some/model", "dtype: auto", "2:1", "model.name_or_path", "RCP003 | write name_or_path: HUB"),
    swapped("missing in a list", "{path: a.jsonl}", "[{path: a}, {name: b}]", "5:22", "data.train[1].path", "RCP003 | write path: FILE"),
    swapped("missing method", "dpo: {}\n", "", "1:1", None, "RCP018 | no method section | `dpo: {}`"),
    swapped("method null", "dpo: {}", "dpo: null", "3:6", "dpo", "RCP018"),
    swapped("method empty", "dpo: {}", "dpo:", "3:5", "dpo", "RCP007"),
    added("section empty", "lora:", "6:6", "lora", "RCP007"),
    added("section commented out", "lora:\n#  rank: 8\n", "6:6", "lora", "RCP007"),
    added("value empty", "lora: {rank: }", "6:13", "lora.rank", "RCP007"),
    swapped("model empty", "{name_or_path: some/model}", "", "2:7", "model", "RCP007"),
)  # fmt: skip

TYPES = table(
    added("text for int", "training: {max_steps: many}", "6:23", "training.max_steps", "RCP004 | 'many' is not a whole number"),
    added("quoted int", "training: {max_steps: '10'}", "6:23", "training.max_steps", "RCP004"),
    added("quoted float", 'training: {learning_rate: "5e-7"}', "6:27", "training.learning_rate", "RCP004"),
    added("quoted flag", "lora: {use_dora: 'true'}", "6:18", "lora.use_dora", "RCP004"),
    added("bool for float", "training: {learning_rate: true}", "6:27", "training.learning_rate", "RCP004"),
    added("bool for int", "training: {max_steps: true}", "6:23", "training.max_steps", "RCP004"),
    added("yes for int", "training: {max_steps: yes}", "6:23", "training.max_steps", "RCP004"),
    added("float for int", "training: {max_steps: 1.5}", "6:23", "training.max_steps", "RCP004"),
    added("whole float for int", "training: {max_steps: 1e3}", "6:23", "training.max_steps", "RCP004 | write 1000"),
    added("nan for int", "training: {max_steps: .nan}", "6:23", "training.max_steps", "RCP004"),
    added("hex", "training: {max_steps: 0x10}", "6:23", "training.max_steps", "RCP004"),
    added("sexagesimal", "training: {max_steps: 1:30}", "6:23", "training.max_steps", "RCP004"),
    added("number for flag", "lora: {use_dora: 1}", "6:18", "lora.use_dora", "RCP004"),
    added("word for flag", "lora: {use_dora: maybe}", "6:18", "lora.use_dora", "RCP004"),
    added("null for flag", "lora: {use_dora: null}", "6:18", "lora.use_dora", "RCP004"),
    swapped("number for text", "runs/x", "42", "1:13", "output_dir", "RCP004"),
    swapped("bool for text", "runs/x", "True", "1:13", "output_dir", "RCP004"),
    swapped("float for text", "runs/x", "1e3", "1:13", "output_dir", "RCP004"),
    swapped("section for text", "runs/x", "{a: 1}", "1:13", "output_dir", "RCP004"),
    swapped("null for text", "runs/x", "null", "1:13", "output_dir", "RCP004"),
    swapped("empty text", "runs/x", "''", "1:13", "output_dir", "RCP007"),
    swapped("half a character", "runs/x", '"\\ud800"', "1:13", "output_dir", "RCP004"),
    swapped("NUL escaped", "runs/x", '"a\\0b"', "1:13", "output_dir", "RCP004"),
    added("list for section", "training: [1]", "6:11", "training", "RCP004"),
    added("text for section", "training: fast", "6:11", "training", "RCP004"),
    added("true for section", "training: true", "6:11", "training", "RCP004 | write {} for all defaults"),
    added("null for section", "training: ~", "6:11", "training", "RCP004"),
    swapped("null for model", "{name_or_path: some/model}", "null", "2:8", "model", "RCP004"),
    swapped("text for source", "{path: a.jsonl}", "a.jsonl", "5:10", "data.train", "RCP004 | write {path: a.jsonl}"),
    swapped("text in sources", "{path: a.jsonl}", "[a.jsonl]", "5:11", "data.train[0]", "RCP004 | write {path: a.jsonl}"),
    swapped("null for source", "{path: a.jsonl}", "null", "5:10", "data.train", "RCP004"),
    swapped("no sources", "{path: a.jsonl}", "[]", "5:10", "data.train", "RCP007"),
    swapped("number for columns", "a.jsonl", "a, columns: 3", "5:29", "data.train.columns", "RCP004"),
    swapped("number as column", "a.jsonl", "a, columns: {prompt: 3}", "5:38", "data.train.columns.prompt", "RCP004"),
    swapped("word for a share", "dpo: {}", "dpo: {ld_alpha: auto}", "3:17", "dpo.ld_alpha", "RCP004"),
    added("word for list", "logging: {report_to: wandb}", "6:22", "logging.report_to", "RCP004 | write a list: [wandb]"),
    added("wrong list entry", "logging: {report_to: [wandb, tensorbord]}", "6:30", "logging.report_to[1]", "RCP006 | mean tensorboard?"),
    added("number in text list", "lora: {target_modules: [q, 2]}", "6:28", "lora.target_modules[1]", "RCP004"),
    added("nearly all-linear", "lora: {target_modules: all_linear}", "6:24", "lora.target_modules", "RCP004 | mean all-linear?"),
    added("one module", "lora: {target_modules: q_proj}", "6:24", "lora.target_modules", "RCP004 | write a list: [q_proj]"),
    added("number for modules", "lora: {target_modules: 3}", "6:24", "lora.target_modules", "RCP004"),
)  # fmt: skip

RANGES = table(
    added("zero rate", "training: {learning_rate: 0}", "6:27", "training.learning_rate", "RCP005 | out of range"),
    added("rate of 5", "training: {learning_rate: 5}", "6:27", "training.learning_rate", "RCP005 | write 1 or less"),
    added("nan", "training: {learning_rate: .nan}", "6:27", "training.learning_rate", "RCP005"),
    added("inf", "training: {learning_rate: .inf}", "6:27", "training.learning_rate", "RCP005"),
    added("minus inf", "training: {learning_rate: -.inf}", "6:27", "training.learning_rate", "RCP005"),
    added("overflow", "training: {learning_rate: 1e400}", "6:27", "training.learning_rate", "RCP005"),
    added("no rank", "lora: {rank: 0}", "6:14", "lora.rank", "RCP005 | write 1 or more"),
    added("dropout of 1", "lora: {dropout: 1}", "6:17", "lora.dropout", "RCP005"),
    added("floor at the rate", "training: {lr_scheduler_type: cosine_with_min_lr, min_lr_ratio: 1}", "6:65", "training.min_lr_ratio", "RCP005"),
    added("negative seed", "seed: -1", "6:7", "seed", "RCP005 | write 0 or more"),
    added("large seed", "seed: 4294967296", "6:7", "seed", "RCP005"),
    added("int of 5000 digits", "seed: " + "9" * 5000, "6:7", "seed", "RCP004"),
    added("rate of 4000 digits", "training: {learning_rate: " + "1" * 4000 + "}", "6:27", "training.learning_rate", "RCP004"),
    swapped("weight of 0", "dpo: {}", "kto: {desirable_weight: 0}", "3:25", "kto.desirable_weight", "RCP004"),
    swapped("gamma below 0", "dpo: {}", "simpo: {gamma: -1}", "3:16", "simpo.gamma", "RCP005 | write 0 or more"),
    swapped("ld_alpha above 1", "dpo: {}", "dpo: {ld_alpha: 1.5}", "3:17", "dpo.ld_alpha", "RCP005 | write 1 or less"),
    swapped("tau of 0", "dpo: {}", "dpo: {loss_type: discopop, discopop_tau: 0}", "3:42", "dpo.discopop_tau", "RCP005"),
    swapped("fraction of 0", "a.jsonl", "a, fraction: 0", "5:30", "data.train.fraction", "RCP005"),
    swapped("one token", "data:", "data:\n  max_length: 1", "5:15", "data.max_length", "RCP005 | write 8 or more"),
)  # fmt: skip

CHOICES = table(
    added("no", "check_sft: {on_fail: no}", "6:22", "check_sft.on_fail", "RCP006"),
    added("off", "check_sft: {on_fail: off}", "6:22", "check_sft.on_fail", "RCP006"),
    added("true", "check_sft: {on_fail: true}", "6:22", "check_sft.on_fail", "RCP006"),
    added("misspelt", "check_sft: {on_fail: STOPP}", "6:22", "check_sft.on_fail", "RCP006 | mean stop?"),
    added("null", "check_sft: {on_fail: ~}", "6:22", "check_sft.on_fail", "RCP006"),
    swapped("loss", "dpo: {}", "dpo: {loss_type: sigmod}", "3:18", "dpo.loss_type", "RCP006 | mean sigmoid?"),
    swapped("loss in a list", "dpo: {}", "dpo: {loss_type: [hinge, sigmod]}", "3:26", "dpo.loss_type[1]", "RCP006 | mean sigmoid?"),
    swapped("a method as loss", "dpo: {}", "dpo: {loss_type: simpo}", "3:18", "dpo.loss_type", "RCP006"),
    swapped("divergence", "dpo: {}", "dpo: {f_divergence_type: js}", "3:26", "dpo.f_divergence_type", "RCP006"),
    swapped("word as weight", "dpo: {}", "kto: {desirable_weight: autom}", "3:25", "kto.desirable_weight", "RCP004"),
    swapped("quoted weight", "dpo: {}", "kto: {desirable_weight: '2'}", "3:25", "kto.desirable_weight", "RCP004"),
    swapped("null as weight", "dpo: {}", "kto: {undesirable_weight: ~}", "3:27", "kto.undesirable_weight", "RCP004"),
    swapped("number as loss", "dpo: {}", "dpo: {loss_type: 3}", "3:18", "dpo.loss_type", "RCP004"),
)  # fmt: skip

RULES = table(
    added("two warm-ups", "training: {warmup_ratio: 0.1, warmup_steps: 3}", "6:26", "training.warmup_ratio", "RCP016"),
    added("warm-up of constant", "training: {lr_scheduler_type: constant, warmup_steps: 3}", "6:31", "training.lr_scheduler_type", "RCP016"),
    added("floor missing", "training: {lr_scheduler_type: cosine_with_min_lr}", "6:31", "training.lr_scheduler_type", "RCP016"),
    added("floor unread", "training: {min_lr_ratio: 0.1}", "6:26", "training.min_lr_ratio", "RCP016 | write cosine_with_min_lr"),
    added("batch", "training: {global_batch_size: 9, per_device_train_batch_size: 2}", "6:31", "training.global_batch_size", "RCP016"),
    added("enormous batch", "training: {global_batch_size: 1000000000000000003, per_device_train_batch_size: 8}", "6:31", "training.global_batch_size", "RCP016"),
    added("run name", "logging: {run_name: a}", "6:21", "logging.run_name", "RCP016"),
    added("eval steps", "training: {eval_steps: 5}", "6:24", "training.eval_steps", "RCP016"),
    added("kto alone in a batch", "kto: {}\ntraining: {per_device_train_batch_size: 1}", "7:41", "training.per_device_train_batch_size", "RCP016"),
    added("dropout on parameters", "lora: {target_parameters: experts}", "6:27", "lora.target_parameters", "RCP016 | write dropout: 0"),
    added("no parameters", "lora: {target_parameters: [], dropout: 0.0}", "6:27", "lora.target_parameters", "RCP016"),
    added("nearly experts", "lora: {target_parameters: expert}", "6:27", "lora.target_parameters", "RCP004 | mean experts?"),
    added("adapter at the head", "lora: {target_modules: [lm_head]}", "6:24", "lora.target_modules", "RCP016"),
    swapped("weights", "dpo: {}", "dpo: {loss_weights: [1, 2]}", "3:21", "dpo.loss_weights", "RCP016"),
    swapped("tau unread", "dpo: {}", "dpo: {discopop_tau: 0.1}", "3:21", "dpo.discopop_tau", "RCP016"),
    swapped("coefficient unread", "dpo: {}", "dpo: {f_alpha_divergence_coef: 0.2}", "3:32", "dpo.f_alpha_divergence_coef", "RCP016"),
    swapped("coefficient missing", "dpo: {}", "dpo: {f_divergence_type: alpha_divergence}", "3:26", "dpo.f_divergence_type", "RCP016"),
    swapped("divergence unread", "dpo: {}", "dpo: {loss_type: aot, f_divergence_type: forward_kl}", "3:42", "dpo.f_divergence_type", "RCP016"),
    swapped("length twice", "dpo: {}", "dpo: {ld_alpha: 0.5, loss_type: ipo}", "3:17", "dpo.ld_alpha", "RCP016"),
    swapped("smoothing unread", "dpo: {}", "dpo: {label_smoothing: 0.1}", "3:24", "dpo.label_smoothing", "RCP016"),
)  # fmt: skip


@UNKNOWN
def test_load_unknown_key_is_located_with_a_suggestion(case, tmp_path):
    case.check(tmp_path)


@KEYS
def test_load_missing_or_empty_key_is_located(case, tmp_path):
    case.check(tmp_path)


@TYPES
def test_load_value_of_wrong_type_is_located(case, tmp_path):
    case.check(tmp_path)


@RANGES
def test_load_value_out_of_range_is_located(case, tmp_path):
    case.check(tmp_path)


@CHOICES
def test_load_unknown_choice_is_located(case, tmp_path):
    case.check(tmp_path)


@RULES
def test_load_conflicting_settings_are_located(case, tmp_path):
    case.check(tmp_path)


def test_load_reports_every_mistake_in_file_order(tmp_path):
    text = """\
output_dir: 3
modle: {name_or_path: m}
dpo: {beta: -1, betta: 1}
dpo: {}
data:
  train: [{path: a, fraction: 2}, {pth: b}]
training: {max_steps: "5", learning_rate: "${nope}"}
lora:
"""
    problems = mistakes(tmp_path, text, "ipo.beta=x", "check_sft")
    assert [p.path for p in problems] == [
        "model",
        "output_dir",
        "modle",
        "dpo.beta",
        "dpo.betta",
        "dpo",
        "data.train[0].fraction",
        "data.train[1].path",
        "data.train[1].pth",
        "training.max_steps",
        "training.learning_rate",
        "lora",
        None,
        "ipo.beta",
    ]
    assert problems[-1].place == "override 'ipo.beta=x'"
    assert problems[-2].place == "override 'check_sft'"


@pytest.mark.parametrize("word", ["5e-7", "5E-7", "5.e-7", "+5e-7", ".5e-6", "0.0000005", "5e-07"])
def test_load_scientific_notation_is_a_number(word, tmp_path):
    text = f"{GOOD}training: {{learning_rate: {word}}}\n"
    assert load(write(tmp_path, text)).recipe.training.learning_rate == 5e-7


def test_load_int_for_a_float_is_converted(tmp_path):
    assert load(write(tmp_path, f"{GOOD}lora: {{alpha: 32}}\n")).recipe.lora.alpha == 32.0


@pytest.mark.parametrize(
    ("word", "flag"),
    [("yes", True), ("on", True), ("no", False), ("off", False), ("NO", False), ("True", True)],
)
def test_load_yaml_1_1_flag_is_a_bool(word, flag, tmp_path):
    text = f"{GOOD}lora: {{use_dora: {word}}}\n"
    assert load(write(tmp_path, text)).recipe.lora.use_dora is flag


def test_load_no_for_a_text_stays_text(tmp_path):
    assert load(write(tmp_path, GOOD.replace("runs/x", "no"))).recipe.output_dir == "no"


def test_alias_suggests_a_key_of_the_schema(tmp_path):
    for name, key in ALIASES.items():
        assert name == name.lower().replace("-", "_")
        *_, problem = mistakes(tmp_path, GOOD, f"{key}=[[]]")
        assert problem.message != "no such key", key
        (problem,) = mistakes(tmp_path, f"{GOOD}{name}: 1\n")
        assert UNSUPPORTED.get(name, key) in (problem.hint or "")


def test_no_key_of_the_schema_is_refused_as_unsupported():
    names = {part for path in all_paths() for part in (path, path.rpartition(".")[2])}
    assert not UNSUPPORTED.keys() & names


RENAMED_PATHS = {
    "anchor": "expected",
    "data.checks.seams": "data.checks.prompt_boundary",
    "data.checks.template_seams": "data.checks.template_boundary",
    "health.collapse.on": "health.collapse.level",
    "health.displacement.fall": "health.displacement.warn_nats",
    "health.flat": "health.no_learning",
    "health.gradient.times": "health.gradient.spike_factor",
    "health.margin.nats_a_token": "health.margin.nats_per_token",
    "health.overfitting.far": "health.overfitting.max_ratio",
    "launch.machines": "launch.nodes",
    "push": "push_to_hub",
}


def test_renamed_covers_every_entry():
    assert len(RENAMED_PATHS) == len(RENAMED)
    assert set(RENAMED_PATHS.values()) <= set(all_paths())


@pytest.mark.parametrize(("old", "new"), RENAMED_PATHS.items())
def test_renamed_key_is_one_error_that_names_the_new_key(old, new, tmp_path):
    (problem,) = mistakes(tmp_path, GOOD, f"{old}=2")
    assert (problem.path, problem.hint) == (old, f"write {new}")


def test_renamed_section_with_content_is_one_error(tmp_path):
    (problem,) = mistakes(tmp_path, f"{GOOD}push: {{repo_id: me/tiny, private: false}}\n")
    assert (problem.path, problem.hint) == ("push", "write push_to_hub")


@pytest.mark.parametrize(
    ("command", "new"),
    [
        (["fetch", "r.yaml"], "prefcli download"),
        (["dpo", "r.yaml", "--resume-anyway"], "--force-resume"),
    ],
)
def test_renamed_command_or_flag_is_an_error_that_names_the_new_one(command, new):
    with pytest.raises(RecipeError) as caught:
        refuse_renamed(command)
    (problem,) = caught.value.problems
    assert problem.hint == f"write {new}"
