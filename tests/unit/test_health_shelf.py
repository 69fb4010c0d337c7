"""The shelf as a whole: names, levels, the recipe's section, the monitor."""

import inspect
import math
import re
from pathlib import Path

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
from tests.support.metric_rows import at, reported, rows

DPO = RunContext(Dpo(), 300, 30, batch=32, starts_at_reference=True)
RULES = Health().rules


# --- what a rule is


def test_docs_name_every_rule():
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text("utf-8")
    assert [rule.name for rule in RULES if f"| `{rule.name}` |" not in page] == []


def test_rules_have_the_names_of_their_keys():
    assert {rule.name: type(rule) for rule in RULES} == {
        name: type(rule) for name, rule in Health()
    }
    assert len(RULES) == 19


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_and_its_thresholds_are_described_in_the_schema(rule):
    section, level = Health.model_json_schema()["$defs"][type(rule).__name__]["anyOf"]
    assert level == {"enum": ["note", "warn", "stop", "off"], "type": "string"}
    for key in type(rule).model_fields:
        assert section["properties"][key]["description"], key
    assert inspect.getdoc(type(rule))
    assert inspect.getmodule(type(rule)).__name__ == f"prefcli.health.{rule.name}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_defers_to_rules_of_the_shelf(rule):
    assert set(rule.defers_to) < {other.name for other in RULES}


def test_rules_that_stop_by_default_are_finite_and_collapse():
    assert {rule.name for rule in RULES if rule.level == "stop"} == {"finite", "collapse"}


def test_rules_apply_to_methods_with_their_metrics():
    watched = {
        name: {rule.name for rule in RULES if rule.applies(method())}
        for name, method in METHODS.items()
    }
    everywhere = {"finite", "no_learning", "gradient", "overfitting", "forgetting"}
    everywhere |= {"end_token", "repetition"}
    pairs = {"collapse", "displacement", "margin", "accuracy", "saturation", "length"}
    assert watched == {
        "sft": everywhere,
        "dpo": everywhere | pairs,
        "ipo": everywhere | pairs,
        "kto": everywhere | {"collapse", "displacement", "margin", "kto_kl"},
        "orpo": everywhere | pairs | {"orpo_odds"},
        "simpo": everywhere | pairs,
        "cpo": everywhere | pairs,
        "reward": {"finite", "no_learning", "gradient", "overfitting"}
        | {"margin", "accuracy", "saturation", "length"},
        "rloo": (everywhere | {"policy_kl", "length_hacking", "entropy", "equal_scores"})
        - {"overfitting", "end_token"},
    }


def test_run_context_takes_capabilities_of_the_method():
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


def test_run_context_advice_names_keys_of_the_recipe():
    def of(method, **options):
        return RunContext.of(method, steps=90, warmup=9, batch=16, **options)

    assert of(Dpo()).keep_likelihood == (
        "add an SFT term (dpo.loss_type: [sigmoid, sft]), or mix in demonstrations (sft_mix)"
    )
    assert of(Dpo(loss_type=["sigmoid", "sft"]), mixes_sft=True).keep_likelihood == (
        "weigh sft more in dpo.loss_weights, or raise sft_mix.fraction"
    )
    assert of(Simpo(cpo_alpha=0.1)).keep_likelihood.startswith("raise simpo.cpo_alpha")
    assert of(Kto()).keep_likelihood == "mix in demonstrations (sft_mix)"


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.strength_key])
def test_run_context_advice_names_keys_of_the_method(name):
    context = RunContext.of(METHODS[name](), steps=90, warmup=9, batch=16)
    keys = {field.alias or key for key, field in METHODS[name].model_fields.items()}
    words = f"{context.keep_likelihood} {context.method.weaken} {context.method.strengthen}"
    sections = re.findall(rf"\b{name}\.([a-z_]+)", words)
    assert sections
    assert set(sections) <= keys


# --- the recipe's section


def health(folder, *overrides, text=GOOD):
    return load(write(folder, text), overrides).recipe.health


def test_health_accepts_a_level_in_place_of_a_section(tmp_path):
    sections = health(
        tmp_path, "health.collapse=off", "health.gradient.level=note", "health.margin=stop"
    )
    assert (sections.collapse.level, sections.gradient.level, sections.margin.level) == (
        "off",
        "note",
        "stop",
    )
    assert sections.collapse.floor == 50.0
    assert sections.displacement == Health().displacement


def test_health_keeps_the_defaults_of_other_thresholds(tmp_path):
    sections = health(tmp_path, "health={displacement: {warn_nats: 1.5}, finite: warn}")
    assert (sections.displacement.note, sections.displacement.warn_nats) == (0.3, 1.5)
    assert (sections.displacement.level, sections.finite.level) == ("warn", "warn")


@pytest.mark.parametrize(
    ("override", "text"),
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
def test_health_with_a_mistake_is_refused(tmp_path, override, text):
    with pytest.raises(RecipeError) as caught:
        health(tmp_path, override)
    assert text in str(caught.value)


def test_health_refuses_kto_kl_with_apo_zero_unpaired(tmp_path):
    text = GOOD.replace("dpo: {}", "kto: {loss_type: apo_zero_unpaired}")
    with pytest.raises(RecipeError, match="no effect on kto"):
        health(tmp_path, "health.kto_kl=off", text=text)
    assert health(tmp_path, "health.kto_kl=off", text=text.replace("apo_zero_unpaired", "kto"))


def test_health_accepts_a_rule_for_one_of_the_methods(tmp_path):
    text = GOOD.replace("dpo: {}", "dpo: {}\nkto: {}")
    assert health(tmp_path, "health.kto_kl=off", text=text).kto_kl.level == "off"


def test_health_survives_a_round_trip_through_the_recipe(tmp_path):
    recipe = load(write(tmp_path, GOOD), ["health.collapse=off"]).recipe
    assert Recipe.model_validate(recipe.model_dump(by_alias=True, exclude_none=True)) == recipe


def test_health_may_change_when_a_run_is_resumed(tmp_path):
    path = write(tmp_path, GOOD)
    folder = RunDir(str(tmp_path / "run"))
    folder.start(load(path).recipe, "dpo")
    folder.write_run({"status": "diverged", "method": "dpo"})
    assert folder.check(load(path, ["health.collapse=warn"]).recipe, "dpo") == "diverged"
    with pytest.raises(RecipeError, match="a different run"):
        folder.check(load(path, ["dpo.beta=0.3"]).recipe, "dpo")


# --- the history


def test_history_weighs_rows_by_their_steps():
    history = History()
    for row in ({"step": 1, "loss": 9.0}, {"step": 10, "loss": 2.0}, {"step": 40, "loss": 1.0}):
        history.add(row)
    last = history.recent("loss", 35)
    assert (last.steps, last.mean) == (39, pytest.approx((2 * 9 + 1 * 30) / 39))
    assert history.recent("loss", 30, after=10).steps == 30
    assert history.recent("loss", 31, after=10) is None
    assert history.opening("loss", 2).steps == 10
    assert history.series("loss") == [9.0, 2.0, 1.0]


def test_history_separates_evaluations():
    history = History()
    for row in (at(0, {"loss": 3.0}), {"step": 1, "loss": 9.0}, at(10, {"loss": None})):
        history.add(row)
    assert history.series("eval_loss") == [3.0]
    assert history.series("loss") == [9.0]
    assert history.step == 10
    assert (len(history.train), len(history.eval)) == (1, 2)


# --- the monitor


BELOW_FLOOR = {"step": 10, "logps/rejected_per_token": -60.0}


def test_monitor_skips_rules_that_are_off():
    assert reported(DPO, [BELOW_FLOOR], collapse="off") == []


@pytest.mark.parametrize("level", LEVELS)
def test_monitor_limits_advice_to_the_level_of_the_rule(level):
    assert reported(DPO, [BELOW_FLOOR], collapse=level) == [("collapse", level)]
    stream = rows(3, {"rewards/chosen": -50.0, "tokens/chosen": 250.0})  # 2 nats per token
    assert reported(DPO, stream, displacement=level) == [("displacement", level)]


def test_monitor_returns_the_most_severe_advice_first():
    row = {"step": 10, "loss": None, "rewards/margins": 90.0}
    assert reported(DPO, [row]) == [("finite", "stop"), ("margin", "warn")]


def test_monitor_after_a_replay_does_not_repeat_advice():
    past = rows(3, {"rewards/margins": 30.0})
    before = Monitor(RULES, DPO)
    reports = [advice.as_dict() for row in past for advice in before.observe(row)]
    assert [entry["rule"] for entry in reports] == ["margin"]
    after = Monitor(RULES, DPO)
    after.replay(past, reports)
    assert after.observe({"step": 40, "rewards/margins": 31.0}) == []
    assert after.history.step == 40


def test_monitor_after_a_replay_stops_a_run_again():
    before, after = Monitor(RULES, DPO), Monitor(RULES, DPO)
    (stop,) = before.observe(BELOW_FLOOR)
    after.replay([BELOW_FLOOR], [stop.as_dict()])
    (again,) = after.observe(BELOW_FLOOR | {"step": 20})
    assert again.level == "stop"


def test_advice_as_dict_is_a_line_of_health_jsonl():
    (advice,) = Monitor(RULES, DPO).observe(BELOW_FLOOR)
    line = advice.as_dict()
    assert list(line) == ["rule", "level", "step", "seen", "means", "change", "message"]
    assert line["message"] == f"{advice.seen}: {advice.means}; {advice.change}"
    assert "\n" not in line["message"]


# --- any rows

NAMES = [
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
    st.dictionaries(st.sampled_from([*NAMES, "step"]), values, max_size=8),
    st.dictionaries(
        st.sampled_from([*(f"eval_{name}" for name in NAMES), "step"]), values, max_size=8
    ),
)
any_context = st.builds(
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
@given(any_context, st.lists(any_row, max_size=40), st.booleans())
def test_monitor_on_any_rows_does_not_raise_or_repeat(context, stream, counted):
    monitor = Monitor(RULES, context)
    reports = []
    for i, row in enumerate(stream):
        reports += monitor.observe({**row, "step": 10 * i} if counted else row)
    levels = [(advice.rule, LEVELS.index(advice.level)) for advice in reports]
    assert len(set(levels)) == len(levels)
    for name in {rule for rule, _ in levels}:
        of_rule = [level for rule, level in levels if rule == name]
        assert of_rule == sorted(of_rule)
    for advice in reports:
        assert "\n" not in str(advice)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_context, st.dictionaries(st.sampled_from(NAMES), values, min_size=4), st.integers(1, 40))
def test_monitor_on_constant_rows_does_not_repeat(context, row, every):
    monitor = Monitor(RULES, context)
    reports = [
        advice for i in range(1, 60) for advice in monitor.observe({**row, "step": every * i})
    ]
    assert len({(advice.rule, advice.level) for advice in reports}) == len(reports)
