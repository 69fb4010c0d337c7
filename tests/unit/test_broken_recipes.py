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
    added("misspelt section", "trainig: {}", "6:1", "trainig", "no such key | mean training?"),
    added("misspelt key", "training: {learning_rat: 1}", "6:12", "training.learning_rat", "mean learning_rate?"),
    added("another case", "training: {Max_Steps: 1}", "6:12", "training.Max_Steps", "mean max_steps?"),
    swapped("in a source", "a.jsonl", "a.jsonl, splitt: b", "5:26", "data.train.splitt", "mean split?"),
    swapped("in a list", "{path: a.jsonl}", "[{path: a}, {path: b, nmae: c}]", "5:32", "data.train[1].nmae", "mean name?"),
    added("deep below it", "x: {y: {z: 1}}", "6:1", "x", "no such key | keys here: output_dir"),
    added("key of a section", "learning_rate: 1e-6", "6:1", "learning_rate", "belongs to training.learning_rate"),
    added("key of three sections", "beta: 1", "6:1", "beta", "dpo.beta or ipo.beta or kto.beta"),
    added("key of the top", "training: {seed: 1}", "6:12", "training.seed", "top level"),
    added("of another section", "training: {max_length: 9}", "6:12", "training.max_length", "data.max_length"),
    added("torch_dtype", "torch_dtype: auto", "6:1", "torch_dtype", "prefcli's name is model.dtype"),
    added("torch_dtype, dashed", "torch-dtype: auto", "6:1", "torch-dtype", "model.dtype"),
    swapped("torch_dtype inside", "some/model", "m, torch_dtype: a", "2:26", "model.torch_dtype", "model.dtype"),
    added("lora_r", "lora_r: 8", "6:1", "lora_r", "prefcli's name is lora.rank"),
    added("lora.r", "lora: {r: 8}", "6:8", "lora.r", "prefcli's name is lora.rank"),
    added("base_model", "base_model: m", "6:1", "base_model", "model.name_or_path"),
    added("max_seq_length", "max_seq_length: 9", "6:1", "max_seq_length", "data.max_length"),
    added("dataset_mixer", "dataset_mixer: {a: 1}", "6:1", "dataset_mixer", "data.train"),
    added("accumulation", "training: {gradient_accumulation_steps: 2}", "6:12",
          "training.gradient_accumulation_steps", "derived | global_batch_size"),
    added("warmup", "training: {warmup: 0.1}", "6:12", "training.warmup", "training.warmup_ratio"),
    added("lr", "training: {lr: 1e-6}", "6:12", "training.lr", "training.learning_rate"),
    added("trust_remote_code", "trust_remote_code: true", "6:1", "trust_remote_code", "it belongs to model.trust_remote_code"),
    added("load_in_4bit", "load_in_4bit: true", "6:1", "load_in_4bit", "write model.quantization: 4bit"),
    added("dotted key", "training.max_steps: 3", "6:1", "training.max_steps", "inside the section `training:`"),
    added("merge key", "<<: {seed: 1}", "6:1", "<<", "no YAML merge | ${section.key}"),
    added("number as key", "1: 2", "6:1", "1", "no such key"),
    added("truth as key", "true: 2", "6:1", "true", "no such key"),
    added("the attribute of lambda", "orpo: {lambda_: 0.2}", "6:8", "orpo.lambda_", "mean lambda?"),
    added("simpo_gamma", "simpo: {simpo_gamma: 1}", "6:9", "simpo.simpo_gamma", "prefcli's name is simpo.gamma"),
    added("a key simpo lacks", "simpo: {label_smoothing: 0.1}", "6:9", "simpo.label_smoothing", "no such key"),
    added("no space in braces", "training: {max_steps:1}", "6:23", "training.max_steps:1", "space after the colon"),
    added("equals in braces", "training: {max_steps=1}", "6:23", "training.max_steps=1", "space after the colon"),
)  # fmt: skip

KEYS = table(
    added("twice", "dpo: {}", "6:1", "dpo", "stands twice | line 3 | keep one"),
    added("twice, nested", "lora:\n  rank: 8\n  alpha: 1\n  rank: 9", "9:3", "lora.rank", "stands twice | line 7"),
    added("twice, in braces", "lora: {rank: 8, rank: 8}", "6:17", "lora.rank", "stands twice | line 6"),
    added("twice, quoted", "'seed': 1\nseed: 2", "7:1", "seed", "stands twice | line 6"),
    added("list as key", "? [a, b]\n: 1", "6:3", None, "a key must be a plain word | `key: value`"),
    added("section as key", "{a}: 1", "6:1", None, "a key must be a plain word"),
    added("empty key", "'': 1", "6:1", None, "a key must be a plain word"),
    added("escape codes in a key", '"a\\e[31m": 1', "6:1", None, "a key must be a plain word"),
    swapped("missing top key", "output_dir: runs/x\n", "", "1:1", "output_dir", "is missing | output_dir: runs/my-run"),
    swapped("missing inner key", "name_or_path: some/model", "dtype: auto", "2:1", "model.name_or_path", "is missing | write name_or_path: HUB"),
    swapped("missing in a list", "{path: a.jsonl}", "[{path: a}, {name: b}]", "5:22", "data.train[1].path", "is missing | write path: FILE"),
    swapped("missing method", "dpo: {}\n", "", "1:1", None, "no method section | sft:, dpo:, ipo:, kto:, orpo:, simpo: | `dpo: {}`"),
    swapped("method null", "dpo: {}", "dpo: null", "3:6", "dpo", "no method section"),
    swapped("method empty", "dpo: {}", "dpo:", "3:5", "dpo", "nothing follows | {}"),
    added("section empty", "lora:", "6:6", "lora", "nothing follows | {} | null | remove"),
    added("section commented out", "lora:\n#  rank: 8\n", "6:6", "lora", "nothing follows"),
    added("value empty", "lora: {rank: }", "6:13", "lora.rank", "nothing follows"),
    swapped("model empty", "{name_or_path: some/model}", "", "2:7", "model", "nothing follows"),
)  # fmt: skip

TYPES = table(
    added("text for int", "training: {max_steps: many}", "6:23", "training.max_steps", "'many' is not a whole number"),
    added("quoted int", "training: {max_steps: '10'}", "6:23", "training.max_steps", "'10' is not | without quotes"),
    added("quoted float", 'training: {learning_rate: "5e-7"}', "6:27", "training.learning_rate", "'5e-7' is not | without quotes"),
    added("quoted flag", "lora: {use_dora: 'true'}", "6:18", "lora.use_dora", "'true' is not true or false | without quotes"),
    added("bool for float", "training: {learning_rate: true}", "6:27", "training.learning_rate", "true is not a number"),
    added("bool for int", "training: {max_steps: true}", "6:23", "training.max_steps", "true is not a whole number"),
    added("yes for int", "training: {max_steps: yes}", "6:23", "training.max_steps", "'yes' is not a whole number"),
    added("float for int", "training: {max_steps: 1.5}", "6:23", "training.max_steps", "1.5 is not a whole number"),
    added("whole float for int", "training: {max_steps: 1e3}", "6:23", "training.max_steps", "1000.0 is not a whole | write 1000"),
    added("nan for int", "training: {max_steps: .nan}", "6:23", "training.max_steps", "nan is not a whole number"),
    added("hex", "training: {max_steps: 0x10}", "6:23", "training.max_steps", "'0x10' is not a whole number"),
    added("sexagesimal", "training: {max_steps: 1:30}", "6:23", "training.max_steps", "'1:30' is not a whole number"),
    added("number for flag", "lora: {use_dora: 1}", "6:18", "lora.use_dora", "1 is not true or false"),
    added("word for flag", "lora: {use_dora: maybe}", "6:18", "lora.use_dora", "'maybe' is not true or false"),
    added("null for flag", "lora: {use_dora: null}", "6:18", "lora.use_dora", "nothing (null) is not true or false"),
    swapped("number for text", "runs/x", "42", "1:13", "output_dir", '42 is not text | quote it: "42"'),
    swapped("bool for text", "runs/x", "True", "1:13", "output_dir", 'true is not text | quote it: "true"'),
    swapped("float for text", "runs/x", "1e3", "1:13", "output_dir", "1000.0 is not text | put it in quotes"),
    swapped("section for text", "runs/x", "{a: 1}", "1:13", "output_dir", "{'a': 1} is not text"),
    swapped("null for text", "runs/x", "null", "1:13", "output_dir", "nothing (null) is not text"),
    swapped("empty text", "runs/x", "''", "1:13", "output_dir", "the text is empty | output_dir: runs/my-run"),
    swapped("half a character", "runs/x", '"\\ud800"', "1:13", "output_dir", "'\\ud800' is not valid Unicode"),
    swapped("NUL escaped", "runs/x", '"a\\0b"', "1:13", "output_dir", "a NUL character"),
    added("list for section", "training: [1]", "6:11", "training", "[1] is not a section with keys | {}"),
    added("text for section", "training: fast", "6:11", "training", "'fast' is not a section with keys"),
    added("true for section", "training: true", "6:11", "training", "true is not a section | write {} for all defaults"),
    added("null for section", "training: ~", "6:11", "training", "nothing (null) is not a section | {}"),
    swapped("null for model", "{name_or_path: some/model}", "null", "2:8", "model", "(null) is not | model: {name_or_path:"),
    swapped("text for source", "{path: a.jsonl}", "a.jsonl", "5:10", "data.train", "no data source | write {path: a.jsonl}"),
    swapped("text in sources", "{path: a.jsonl}", "[a.jsonl]", "5:11", "data.train[0]", "write {path: a.jsonl}"),
    swapped("null for source", "{path: a.jsonl}", "null", "5:10", "data.train", "no data source | {path:"),
    swapped("no sources", "{path: a.jsonl}", "[]", "5:10", "data.train", "list is empty | at least one"),
    swapped("number for columns", "a.jsonl", "a, columns: 3", "5:29", "data.train.columns", "3 is not a section"),
    swapped("number as column", "a.jsonl", "a, columns: {prompt: 3}", "5:38", "data.train.columns.prompt", '3 is not text | "3"'),
    swapped("word for a share", "dpo: {}", "dpo: {ld_alpha: auto}", "3:17", "dpo.ld_alpha", "'auto' is not a number"),
    added("word for list", "logging: {report_to: wandb}", "6:22", "logging.report_to", "not a list | write a list: [wandb]"),
    added("wrong list entry", "logging: {report_to: [wandb, tensorbord]}", "6:30", "logging.report_to[1]", "mean tensorboard?"),
    added("number in text list", "lora: {target_modules: [q, 2]}", "6:28", "lora.target_modules[1]", "2 is not text"),
    added("nearly all-linear", "lora: {target_modules: all_linear}", "6:24", "lora.target_modules", "mean all-linear?"),
    added("one module", "lora: {target_modules: q_proj}", "6:24", "lora.target_modules", "write a list: [q_proj]"),
    added("number for modules", "lora: {target_modules: 3}", "6:24", "lora.target_modules", "3 is neither all-linear nor a list"),
)  # fmt: skip

RANGES = table(
    added("zero rate", "training: {learning_rate: 0}", "6:27", "training.learning_rate", "out of range | a number above 0"),
    added("rate of 5", "training: {learning_rate: 5}", "6:27", "training.learning_rate", "5 is out of range | write 1 or less"),
    added("nan", "training: {learning_rate: .nan}", "6:27", "training.learning_rate", "nan is not a finite number"),
    added("inf", "training: {learning_rate: .inf}", "6:27", "training.learning_rate", "inf is not a finite number"),
    added("minus inf", "training: {learning_rate: -.inf}", "6:27", "training.learning_rate", "-inf is not a finite"),
    added("overflow", "training: {learning_rate: 1e400}", "6:27", "training.learning_rate", "inf is not a finite"),
    added("no rank", "lora: {rank: 0}", "6:14", "lora.rank", "0 is out of range | write 1 or more"),
    added("dropout of 1", "lora: {dropout: 1}", "6:17", "lora.dropout", "1 is out of range | a number below 1"),
    added("floor at the rate", "training: {lr_scheduler_type: cosine_with_min_lr, min_lr_ratio: 1}", "6:65", "training.min_lr_ratio", "1 is out of range | a number below 1"),
    added("negative seed", "seed: -1", "6:7", "seed", "-1 is out of range | write 0 or more"),
    added("large seed", "seed: 4294967296", "6:7", "seed", "out of range | a number below 4294967296"),
    added("int of 5000 digits", "seed: " + "9" * 5000, "6:7", "seed", "a number of 5000 digits is out of range"),
    added("rate of 4000 digits", "training: {learning_rate: " + "1" * 4000 + "}", "6:27", "training.learning_rate", "4000 digits"),
    swapped("weight of 0", "dpo: {}", "kto: {desirable_weight: 0}", "3:25", "kto.desirable_weight", "0 is "),
    swapped("gamma below 0", "dpo: {}", "simpo: {gamma: -1}", "3:16", "simpo.gamma", "out of range | write 0 or more"),
    swapped("ld_alpha above 1", "dpo: {}", "dpo: {ld_alpha: 1.5}", "3:17", "dpo.ld_alpha", "out of range | write 1 or less"),
    swapped("tau of 0", "dpo: {}", "dpo: {loss_type: discopop, discopop_tau: 0}", "3:42", "dpo.discopop_tau", "above 0"),
    swapped("fraction of 0", "a.jsonl", "a, fraction: 0", "5:30", "data.train.fraction", "a number above 0"),
    swapped("one token", "data:", "data:\n  max_length: 1", "5:15", "data.max_length", "write 8 or more"),
)  # fmt: skip

CHOICES = table(
    added("no", "check_sft: {on_fail: no}", "6:22", "check_sft.on_fail", "'no' is none of stop, warn, skip"),
    added("off", "check_sft: {on_fail: off}", "6:22", "check_sft.on_fail", "'off' is none of"),
    added("true", "check_sft: {on_fail: true}", "6:22", "check_sft.on_fail", "true is none of"),
    added("misspelt", "check_sft: {on_fail: STOPP}", "6:22", "check_sft.on_fail", "'STOPP' is none of | mean stop?"),
    added("null", "check_sft: {on_fail: ~}", "6:22", "check_sft.on_fail", "nothing (null) is none of"),
    swapped("loss", "dpo: {}", "dpo: {loss_type: sigmod}", "3:18", "dpo.loss_type", "mean sigmoid?"),
    swapped("loss in a list", "dpo: {}", "dpo: {loss_type: [hinge, sigmod]}", "3:26", "dpo.loss_type[1]", "mean sigmoid?"),
    swapped("a method as loss", "dpo: {}", "dpo: {loss_type: simpo}", "3:18", "dpo.loss_type", "a method of its own | simpo: {}"),
    swapped("divergence", "dpo: {}", "dpo: {f_divergence_type: js}", "3:26", "dpo.f_divergence_type", "'js' is none of reverse_kl, forward_kl"),
    swapped("word as weight", "dpo: {}", "kto: {desirable_weight: autom}", "3:25", "kto.desirable_weight", "'autom' is neither a number nor auto"),
    swapped("quoted weight", "dpo: {}", "kto: {desirable_weight: '2'}", "3:25", "kto.desirable_weight", "'2' is neither a number nor auto"),
    swapped("null as weight", "dpo: {}", "kto: {undesirable_weight: ~}", "3:27", "kto.undesirable_weight", "nothing (null) is neither a number nor auto"),
    swapped("number as loss", "dpo: {}", "dpo: {loss_type: 3}", "3:18", "dpo.loss_type", "3 is neither one of sigmoid, | nor a list"),
)  # fmt: skip

RULES = table(
    added("two warm-ups", "training: {warmup_ratio: 0.1, warmup_steps: 3}", "6:26", "training.warmup_ratio", "both given; keep one"),
    added("warm-up of constant", "training: {lr_scheduler_type: constant, warmup_steps: 3}", "6:31", "training.lr_scheduler_type", "constant_with_warmup"),
    added("floor missing", "training: {lr_scheduler_type: cosine_with_min_lr}", "6:31", "training.lr_scheduler_type", "needs min_lr_ratio, as in 0.1"),
    added("floor unread", "training: {min_lr_ratio: 0.1}", "6:26", "training.min_lr_ratio", "no effect with lr_scheduler_type cosine; | write cosine_with_min_lr"),
    added("batch", "training: {global_batch_size: 9, per_device_train_batch_size: 2}", "6:31", "training.global_batch_size", "9 is not a multiple | 1, 3, 9"),
    added("enormous batch", "training: {global_batch_size: 1000000000000000003}", "6:31", "training.global_batch_size", "not a multiple"),
    added("run name", "logging: {run_name: a}", "6:21", "logging.run_name", "no effect without report_to"),
    added("eval steps", "training: {eval_steps: 5}", "6:24", "training.eval_steps", "no effect without data.eval"),
    added("kto alone in a batch", "kto: {}\ntraining: {per_device_train_batch_size: 1}", "7:41", "training.per_device_train_batch_size", "kto needs | at least 2, not 1"),
    added("adapter at the head", "lora: {target_modules: [lm_head]}", "6:24", "lora.target_modules", "leave lm_head out"),
    swapped("weights", "dpo: {}", "dpo: {loss_weights: [1, 2]}", "3:21", "dpo.loss_weights", "2 entries for 1 losses | one weight for each"),
    swapped("tau unread", "dpo: {}", "dpo: {discopop_tau: 0.1}", "3:21", "dpo.discopop_tau", "no effect"),
    swapped("coefficient unread", "dpo: {}", "dpo: {f_alpha_divergence_coef: 0.2}", "3:32", "dpo.f_alpha_divergence_coef", "no effect | alpha_divergence"),
    swapped("coefficient missing", "dpo: {}", "dpo: {f_divergence_type: alpha_divergence}", "3:26", "dpo.f_divergence_type", "needs f_alpha_divergence_coef"),
    swapped("divergence unread", "dpo: {}", "dpo: {loss_type: aot, f_divergence_type: forward_kl}", "3:42", "dpo.f_divergence_type", "aot has no form | sigmoid_norm"),
    swapped("length twice", "dpo: {}", "dpo: {ld_alpha: 0.5, loss_type: ipo}", "3:17", "dpo.ld_alpha", "both correct for length | keep one"),
    swapped("smoothing unread", "dpo: {}", "dpo: {label_smoothing: 0.1}", "3:24", "dpo.label_smoothing", "no effect"),
)  # fmt: skip


@UNKNOWN
def test_unknown_keys(case, tmp_path):
    case.check(tmp_path)


@KEYS
def test_keys(case, tmp_path):
    case.check(tmp_path)


@TYPES
def test_types(case, tmp_path):
    case.check(tmp_path)


@RANGES
def test_ranges(case, tmp_path):
    case.check(tmp_path)


@CHOICES
def test_choices(case, tmp_path):
    case.check(tmp_path)


@RULES
def test_rules(case, tmp_path):
    case.check(tmp_path)


def test_all_at_once_in_the_order_of_the_file(tmp_path):
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
def test_a_small_number_is_a_number(word, tmp_path):
    text = f"{GOOD}training: {{learning_rate: {word}}}\n"
    assert load(write(tmp_path, text)).recipe.training.learning_rate == 5e-7


def test_an_int_may_stand_for_a_float(tmp_path):
    assert load(write(tmp_path, f"{GOOD}lora: {{alpha: 32}}\n")).recipe.lora.alpha == 32.0


@pytest.mark.parametrize(
    ("word", "flag"),
    [("yes", True), ("on", True), ("no", False), ("off", False), ("NO", False), ("True", True)],
)
def test_words_for_flags(word, flag, tmp_path):
    text = f"{GOOD}lora: {{use_dora: {word}}}\n"
    assert load(write(tmp_path, text)).recipe.lora.use_dora is flag


def test_no_is_text_where_text_is_wanted(tmp_path):
    assert load(write(tmp_path, GOOD.replace("runs/x", "no"))).recipe.output_dir == "no"


def test_every_foreign_name_leads_to_a_key(tmp_path):
    for name, ours in ALIASES.items():
        assert name == name.lower().replace("-", "_")
        *_, problem = mistakes(tmp_path, GOOD, f"{ours}=[[]]")
        assert problem.message != "no such key", ours
        (problem,) = mistakes(tmp_path, f"{GOOD}{name}: 1\n")
        assert UNSUPPORTED.get(name, ours) in (problem.hint or "")


def test_no_key_of_the_schema_is_refused_as_unsupported():
    names = {part for path in all_paths() for part in (path, path.rpartition(".")[2])}
    assert not UNSUPPORTED.keys() & names


RENAMED_PATHS = {
    "anchor": "expected",
    "data.checks.seams": "data.checks.prompt_boundary",
    "data.checks.template_seams": "data.checks.template_boundary",
    "health.collapse.on": "health.collapse.level",
    "health.displacement.fall": "health.displacement.warn_nats",
    "health.gradient.times": "health.gradient.spike_factor",
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
        (["fetch", "r.yaml"], "prefcli download ..."),
        (["dpo", "r.yaml", "--resume-anyway"], "--force-resume"),
    ],
)
def test_renamed_command_or_flag_is_an_error_that_names_the_new_one(command, new):
    with pytest.raises(RecipeError) as caught:
        refuse_renamed(command)
    (problem,) = caught.value.problems
    assert problem.hint == f"write {new}"
