"""KEY=VALUE on the command line: where it may be put, and errors that point at it."""
# ruff: noqa: E501 - the tables have a case a line

import pytest

from prefcli.recipe import load
from tests.support.broken_recipes import GOOD, given, mistakes, table, write

TWO = GOOD.replace("{path: a.jsonl}", "[{path: a}, {path: b}]")

WRONG = table(
    given("no equals", "seed", None, "RCP013 | not KEY=VALUE"),
    given("nothing", "", None, "RCP013"),
    given("no key", "=3", None, "RCP013"),
    given("dots", "...=3", None, "RCP013"),
    given("index first", "[0]=3", None, "RCP013"),
    given("index below zero", "data.train[-1].path=x", None, "RCP013", TWO),
    given("name as index", "data[train].path=x", None, "RCP013"),
    given("brackets unbalanced", "data]]=3", None, "RCP013"),
    given("superscript index", "data.train[²].path=x", None, "RCP013"),
    given("half a character", "\udc80=3", None, "RCP013"),
    given("forty-one levels", ".".join("a" * 41) + "=3", None, "RCP013"),
    given("hydra's delete", "~dpo", None, "RCP013"),
    given("an escape beyond Unicode", 'output_dir="\\U00110000"', "output_dir", "RCP009"),
    given("hydra's add", "+seed=3", None, "RCP013 | remove the +: seed=3"),
    given("an option", "--seed=3", "--seed", "RCP001 | mean seed?"),
    given("unknown top", "sede=1", "sede", "RCP001 | mean seed?"),
    given("unknown below", "dpo.bta=1", "dpo.bta", "RCP001 | mean beta?"),
    given("foreign", "training.lr=1e-6", "training.lr", "RCP001"),
    given("deep unknown", "a.b.c=1", "a", "RCP001"),
    given("in a new section", "lora.r=8", "lora.r", "RCP001"),
    given("text for number", "dpo.beta=x", "dpo.beta", "RCP004 | 'x' is not a number"),
    given("quoted number", 'dpo.beta="0.1"', "dpo.beta", "RCP004"),
    given("nan", "dpo.beta=.nan", "dpo.beta", "RCP005"),
    given("out of range", "training.max_steps=0", "training.max_steps", "RCP005 | write 1 or more"),
    given("float for int", "training.max_steps=1.5", "training.max_steps", "RCP004"),
    given("null", "dpo.beta=null", "dpo.beta", "RCP004"),
    given("empty", "output_dir=", "output_dir", "RCP007"),
    given("blank", "lora= ", "lora", "RCP007"),
    given("value for section", "dpo=3", "dpo", "RCP004"),
    given("list for section", "training=[1]", "training", "RCP004"),
    given("section for value", "seed.x=3", "seed", "RCP004"),
    given("last method gone", "dpo=null", "dpo", "RCP018 | no method section"),
    given("two equals", "seed=1=2", "seed", "RCP004"),
    given("below a value", "output_dir.x=1", "output_dir.x", "RCP014"),
    given("index of a value", "output_dir[0]=x", "output_dir[0]", "RCP014 | output_dir=..."),
    given("index of a section", "data[0].train=x", "data[0].train", "RCP014 | data.train=..."),
    given(
        "index of one source",
        "data.train[0].path=x",
        "data.train[0].path",
        "RCP014 | write data.train.path=...",
    ),
    given("index of no list", "data.eval[0].path=x", "data.eval[0].path", "RCP014"),
    given("entry of no list", "lora.target_modules[0]=q", "lora.target_modules[0]", "RCP014"),
    given("key of a list", "data.train.path=x", "data.train.path", "RCP014 | data.train[0].path=...", TWO),
    given("beyond a list", "data.train[2].path=x", "data.train[2].path", "RCP014", TWO),
    given("in a list", "data.train[1].fraction=3", "data.train[1].fraction", "RCP005 | write 1 or less", TWO),
    given("text for source", "data.train=b", "data.train", "RCP004 | write {path: b}"),
    given("inside a value", "data.train={pth: b, path: c}", "data.train.pth", "RCP001 | mean path?"),
    given("missing inside", "data.eval.split=x", "data.eval.path", "RCP003 | is missing"),
    given("all of data", "data={}", "data.train", "RCP003"),
    given("open bracket", "lora.target_modules=[a", "lora.target_modules", "RCP009 | this [ is never closed"),
    given("deep brackets", "seed=" + "[" * 90 + "]" * 90, "seed", "RCP010 | nested deeper than 40"),
    given("twice inside", "lora={rank: 8, rank: 9}", "lora.rank", "RCP008"),
    given("tag", "output_dir=!!python/name:os.system x", "output_dir", "RCP010"),
    given("alias", "output_dir=*x", "output_dir", "RCP010"),
    given("5000 digits", "seed=" + "9" * 190, "seed", "RCP004"),
    given("half a character as value", "output_dir=\udc80", "output_dir", "RCP004"),
    given("rule", "dpo.loss_weights=[1, 2]", "dpo.loss_weights", "RCP016 | one weight for each loss"),
    given(
        "rule with the file",
        "training.warmup_steps=3",
        "training.warmup_steps",
        "RCP016",
        f"{GOOD}training: {{warmup_ratio: 0.1}}\n",
    ),
)  # fmt: skip


@WRONG
def test_override_with_a_mistake_is_located(case, tmp_path):
    case.check(tmp_path)


def read(tmp_path, *overrides, text=GOOD):
    return load(write(tmp_path, text), overrides).recipe


def test_override_creates_a_section(tmp_path):
    assert read(tmp_path, "lora.rank=8").lora.rank == 8
    assert read(tmp_path, "ipo={}").ipo is not None


def test_override_null_removes_a_section(tmp_path):
    assert read(tmp_path, "lora=null", text=f"{GOOD}lora: {{rank: 8}}\n").lora is None


def test_override_changes_a_single_source(tmp_path):
    assert read(tmp_path, "data.train.path=b").data.train[0].path == "b"
    assert read(tmp_path, "data.train={path: b}").data.train[0].path == "b"
    assert [s.path for s in read(tmp_path, "data.train=[{path: b}, {path: c}]").data.train] == [
        "b",
        "c",
    ]


@pytest.mark.parametrize("key", ["data.train[1].path", "data.train.1.path"])
def test_override_changes_an_entry_of_a_list(key, tmp_path):
    assert [s.path for s in read(tmp_path, f"{key}=z", text=TWO).data.train] == ["a", "z"]


def test_override_accepts_any_column_name(tmp_path):
    recipe = read(tmp_path, "data.train.columns.prompt=q", "data.train.columns.2=r")
    assert recipe.data.train[0].columns == {"prompt": "q", "2": "r"}


def test_override_value_may_contain_spaces_and_equals(tmp_path):
    assert read(tmp_path, "output_dir = a=b").output_dir == "a=b"
    assert read(tmp_path, "output_dir=a b").output_dir == "a b"


def test_override_replaces_an_invalid_value(tmp_path):
    assert read(tmp_path, "output_dir=x", text=GOOD.replace("runs/x", "3")).output_dir == "x"
    assert read(tmp_path, "output_dir=x", text=GOOD.replace("runs/x", "???")).output_dir == "x"


def test_override_last_one_wins(tmp_path):
    assert read(tmp_path, "seed=1", "seed=2").seed == 2
    (problem,) = mistakes(tmp_path, GOOD, "lora.rank=8", "lora={rank: x}")
    assert problem.place == "override 'lora={rank: x}'"
