"""The shelf as a whole: names, levels, the recipe's section, the monitor."""

import inspect
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from prefcli.health import LEVELS, Health, History, Monitor, RunContext
from prefcli.methods import METHODS, Dpo, Ipo, Kto, Orpo, Simpo
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from tests.support.broken_recipes import GOOD, write
from tests.support.metric_rows import at, rows, told

DPO = RunContext(Dpo(), 300, 30, batch=32, starts_at_reference=True)
RULES = Health().checks


# --- what a rule is


def test_their_names_are_their_keys():
    assert {check.name: type(check) for check in RULES} == {
        name: type(check) for name, check in Health()
    }
    assert len(RULES) == 13


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.name)
def test_every_rule_and_threshold_is_explained(check):
    section, level = Health.model_json_schema()["$defs"][type(check).__name__]["anyOf"]
    assert level == {"enum": ["note", "warn", "stop", "off"], "type": "string"}
    for key in type(check).model_fields:
        assert section["properties"][key]["description"], key
    assert inspect.getdoc(type(check))
    assert inspect.getmodule(type(check)).__name__ == f"prefcli.health.{check.name}"


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.name)
def test_what_it_defers_to_is_there(check):
    assert set(check.defers_to) < {other.name for other in RULES}


def test_only_two_end_a_run():
    assert {check.name for check in RULES if check.level == "stop"} == {"finite", "collapse"}


def test_whom_they_look_at():
    watched = {
        name: {check.name for check in RULES if check.applies(method())}
        for name, method in METHODS.items()
    }
    everywhere = {"finite", "no_learning", "gradient", "overfitting", "forgetting"}
    pairs = {"collapse", "displacement", "margin", "accuracy", "saturation", "length"}
    assert watched == {
        "sft": everywhere,
        "dpo": everywhere | pairs,
        "ipo": everywhere | pairs,
        "kto": everywhere | {"collapse", "displacement", "margin", "kto_kl"},
        "orpo": everywhere | pairs | {"orpo_odds"},
        "simpo": everywhere | pairs,
    }


def test_facts_of_a_method():
    assert RunContext.of(
        Dpo(beta=0.05, loss_type=["hinge", "sft"]), steps=90, warmup=9, batch=16
    ) == (
        RunContext(
            Dpo(beta=0.05, loss_type=["hinge", "sft"]),
            90,
            9,
            batch=16,
            starts_at_reference=True,
        )
    )
    orpo = RunContext.of(Orpo(**{"lambda": 0.2}), steps=90, warmup=9, batch=16)
    assert not orpo.starts_at_reference
    other = RunContext.of(Ipo(), steps=90, warmup=9, batch=16, other_reference=True)
    assert not other.starts_at_reference


def test_cures_name_the_recipes_keys():
    def of(method, **more):
        return RunContext.of(method, steps=90, warmup=9, batch=16, **more)

    assert of(Dpo()).hold == (
        "add an SFT term (dpo.loss_type: [sigmoid, sft]), or mix demonstrations in (sft_mix)"
    )
    assert of(Dpo(loss_type=["sigmoid", "sft"]), mixes_sft=True).hold == (
        "weigh sft more in dpo.loss_weights, or raise sft_mix.fraction"
    )
    assert of(Simpo(cpo_alpha=0.1)).hold.startswith("raise simpo.cpo_alpha")
    assert of(Kto()).hold == "mix demonstrations in (sft_mix)"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sft"])
def test_every_cure_is_a_key_of_the_method(name):
    facts = RunContext.of(METHODS[name](), steps=90, warmup=9, batch=16)
    keys = {field.alias or key for key, field in METHODS[name].model_fields.items()}
    words = f"{facts.hold} {facts.method.weaken} {facts.method.strengthen}"
    found = re.findall(rf"\b{name}\.([a-z_]+)", words)
    assert found
    assert set(found) <= keys


# --- the recipe's section


def health(folder, *overrides, text=GOOD):
    return load(write(folder, text), overrides).recipe.health


def test_a_level_alone(tmp_path):
    found = health(
        tmp_path, "health.collapse=off", "health.gradient.level=note", "health.margin=stop"
    )
    assert (found.collapse.level, found.gradient.level, found.margin.level) == (
        "off",
        "note",
        "stop",
    )
    assert found.collapse.floor == 50.0
    assert found.displacement == Health().displacement


def test_a_threshold_keeps_the_others(tmp_path):
    found = health(tmp_path, "health={displacement: {warn_nats: 1.5}, finite: warn}")
    assert (found.displacement.note, found.displacement.warn_nats) == (0.3, 1.5)
    assert (found.displacement.level, found.finite.level) == ("warn", "warn")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("health.collapse=of", "'of' is not one of note, warn, stop, off"),
        ("health.collapse.level=loud", "health.collapse.level: 'loud' is not one of"),
        ("health.colapse.floor=40", "did you mean collapse?"),
        ("health.collapse.floor=-40", "health.collapse.floor: -40 is out of range"),
        ("health.collapse={level: off, floor: 40}", "floor has no effect with level: off"),
        ("health.kto_kl=note", "override 'health.kto_kl=note': health.kto_kl: health.kto_kl ("),
        ("health.kto_kl.steps=9", "override 'health.kto_kl.steps=9': health.kto_kl.steps: "),
        ("health.orpo_odds=off", "has no effect on dpo"),
        ("health.forgetting.rise=1", "has no effect without sft_mix"),
        ("health.overfitting.evals=5", "has no effect without data.eval"),
    ],
)
def test_mistakes(tmp_path, override, said):
    with pytest.raises(RecipeError) as caught:
        health(tmp_path, override)
    assert said in str(caught.value)


def test_kl_beside_apo_zero_unpaired(tmp_path):
    text = GOOD.replace("dpo: {}", "kto: {loss_type: apo_zero_unpaired}")
    with pytest.raises(RecipeError, match="no effect on kto"):
        health(tmp_path, "health.kto_kl=off", text=text)
    assert health(tmp_path, "health.kto_kl=off", text=text.replace("apo_zero_unpaired", "kto"))


def test_one_method_that_is_looked_at_is_enough(tmp_path):
    text = GOOD.replace("dpo: {}", "dpo: {}\nkto: {}")
    assert health(tmp_path, "health.kto_kl=off", text=text).kto_kl.level == "off"


def test_a_saved_recipe_is_read_again(tmp_path):
    recipe = load(write(tmp_path, GOOD), ["health.collapse=off"]).recipe
    assert Recipe.model_validate(recipe.model_dump(by_alias=True, exclude_none=True)) == recipe


def test_thresholds_may_change_between_the_parts_of_a_run(tmp_path):
    path = write(tmp_path, GOOD)
    folder = RunDir(str(tmp_path / "run"))
    folder.start(load(path).recipe, "dpo")
    folder.write_run({"status": "diverged", "method": "dpo"})
    assert folder.check(load(path, ["health.collapse=warn"]).recipe, "dpo") == "diverged"
    with pytest.raises(RecipeError, match="a different run"):
        folder.check(load(path, ["dpo.beta=0.3"]).recipe, "dpo")


# --- the history


def test_a_row_is_the_mean_of_the_steps_since_the_one_before():
    history = History()
    for row in ({"step": 1, "loss": 9.0}, {"step": 10, "loss": 2.0}, {"step": 40, "loss": 1.0}):
        history.add(row)
    last = history.recent("loss", 35)
    assert (last.steps, last.mean) == (39, pytest.approx((2 * 9 + 1 * 30) / 39))
    assert history.recent("loss", 30, after=10).steps == 30
    assert history.recent("loss", 31, after=10) is None
    assert history.opening("loss", 2).steps == 10
    assert history.series("loss", last=2) == [2.0, 1.0]


def test_evaluations_are_apart():
    history = History()
    for row in (at(0, {"loss": 3.0}), {"step": 1, "loss": 9.0}, at(10, {"loss": None})):
        history.add(row)
    assert history.series("eval_loss") == [3.0]
    assert history.series("loss") == [9.0]
    assert history.step == 10
    assert (len(history.train), len(history.eval)) == (1, 2)


# --- the monitor


LOST = {"step": 10, "logps/rejected_per_token": -60.0}


def test_off_is_off():
    assert told(DPO, [LOST], collapse="off") == []


@pytest.mark.parametrize("level", LEVELS)
def test_on_bounds_what_is_said(level):
    assert told(DPO, [LOST], collapse=level) == [("collapse", level)]
    stream = rows(3, {"rewards/chosen": -50.0, "tokens/chosen": 250.0})  # 2 nats a token
    assert told(DPO, stream, displacement=level) == [("displacement", level)]


def test_the_loudest_comes_first():
    row = {"step": 10, "loss": None, "rewards/margins": 90.0}
    assert told(DPO, [row]) == [("finite", "stop"), ("margin", "warn")]


def test_a_resumed_run_does_not_say_it_again():
    past = rows(3, {"rewards/margins": 30.0})
    before = Monitor(RULES, DPO)
    said = [advice.as_dict() for row in past for advice in before.look(row)]
    assert [each["check"] for each in said] == ["margin"]
    after = Monitor(RULES, DPO)
    after.replay(past, said)
    assert after.look({"step": 40, "rewards/margins": 31.0}) == []
    assert after.history.step == 40


def test_a_run_that_was_stopped_is_stopped_again():
    before, after = Monitor(RULES, DPO), Monitor(RULES, DPO)
    (stop,) = before.look(LOST)
    after.replay([LOST], [stop.as_dict()])
    (again,) = after.look(LOST | {"step": 20})
    assert again.level == "stop"


def test_as_a_line_of_health_jsonl():
    (advice,) = Monitor(RULES, DPO).look(LOST)
    line = advice.as_dict()
    assert list(line) == ["check", "level", "step", "seen", "means", "change", "message"]
    assert line["message"] == f"{advice.seen}: {advice.means}; {advice.change}"
    assert "\n" not in line["message"]


# --- whatever comes

METRICS = [
    "loss",
    "grad_norm",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies_chosen_longer",
    "rewards/accuracies_chosen_shorter",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "tokens/chosen",
    "tokens/rejected",
    "kl",
    "log_odds_chosen",
    "sft_mix/loss",
]
values = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.sampled_from([0.0, -1e308, 1e308, 5e-324, math.nan, math.inf]),
)
any_row = st.one_of(
    st.dictionaries(st.sampled_from([*METRICS, "step"]), values, max_size=8),
    st.dictionaries(
        st.sampled_from([*(f"eval_{name}" for name in METRICS), "step"]), values, max_size=8
    ),
)
any_facts = st.builds(
    RunContext,
    method=st.sampled_from(
        [
            *(method() for method in METHODS.values()),
            *(Dpo(beta=beta) for beta in (1e-3, 10.0)),
            Dpo(loss_type=["ipo", "sft"]),
            Kto(loss_type="apo_zero_unpaired"),
        ]
    ),
    steps=st.integers(1, 10_000),
    warmup=st.integers(0, 50),
    batch=st.integers(1, 512),
    eval_rows=st.integers(0, 5000),
    starts_at_reference=st.booleans(),
    mixes_sft=st.booleans(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_facts, st.lists(any_row, max_size=40), st.booleans())
def test_no_rule_raises_and_none_repeats_itself(facts, stream, counted):
    monitor = Monitor(RULES, facts)
    said = []
    for i, row in enumerate(stream):
        said += monitor.look({**row, "step": 10 * i} if counted else row)
    levels = [(advice.check, LEVELS.index(advice.level)) for advice in said]
    assert len(set(levels)) == len(levels)
    for name in {check for check, _ in levels}:
        of_one = [level for check, level in levels if check == name]
        assert of_one == sorted(of_one)
    for advice in said:
        assert "\n" not in str(advice)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_facts, st.dictionaries(st.sampled_from(METRICS), values, min_size=4), st.integers(1, 40))
def test_nor_does_one_on_rows_that_stay(facts, row, every):
    monitor = Monitor(RULES, facts)
    said = [advice for i in range(1, 60) for advice in monitor.look({**row, "step": every * i})]
    assert len({(advice.check, advice.level) for advice in said}) == len(said)
