"""The shipped recipes: all found, valid, as published, and headed by the same words."""

from __future__ import annotations

import re

import pytest

from prefcli.methods import METHODS
from prefcli.recipe import Recipe, load
from prefcli.recipe.catalog import Shipped, shipped
from prefcli.recipe.compatibility import check_combinations
from prefcli.recipe.published_ranges import check_published_ranges
from tests.support.light_half import run

LIBRARY = shipped()
HEADER = ("Source:", "Differs:", "Expected:", "Needs:")
PARAMETERS = {
    "smollm2-135m": 135e6,
    "smollm2-360m": 362e6,
    "smollm2-1.7b": 1.71e9,
    "smollm3": 3.1e9,
    "qwen": 1.54e9,
    "llama": 8.0e9,
    "zephyr-orpo-141b": 141e9,
    "zephyr": 7.2e9,
    "mistral": 7.2e9,
    "quickstart": 2e5,
    "stories": 2.6e5,
}

every = pytest.mark.parametrize("shipped", LIBRARY, ids=lambda r: r.name)


def header(shipped: Shipped) -> list[str]:
    lines = shipped.path.read_text("utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def recipe(name: str) -> Recipe:
    (loaded_recipe,) = (r for r in LIBRARY if r.name == name)
    return load(str(loaded_recipe.path)).recipe


def parameters(name: str) -> int:
    return int(next(count for start, count in PARAMETERS.items() if name.startswith(start)))


def test_shipped_recipes_are_valid_and_complete(monkeypatch, capsys):
    assert len(LIBRARY) == 32
    assert {r.name.rpartition("/")[2] for r in LIBRARY if "/" in r.name} == {*METHODS}
    assert run(monkeypatch, "validate", *(str(r.path) for r in LIBRARY)) == 0
    assert capsys.readouterr().out.count(": valid (") == len(LIBRARY)


def test_list_fits_a_terminal_and_starts_with_quickstart(monkeypatch, capsys):
    assert run(monkeypatch, "recipes", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines.index("") == 9
    names = [line.split()[0] for line in lines if line]
    assert names == [r.name for r in LIBRARY]
    assert all(name.startswith("quickstart/") for name in names[:9])
    assert names[9:] == sorted(names[9:])


@every
def test_header_has_purpose_source_and_hardware(shipped):
    first, blank, *rest = header(shipped)
    assert re.fullmatch(r"# [A-Z].*[.]", first)
    assert blank == "#"
    starts = [line[2:].split()[0] for line in rest if re.match(r"# [A-Z][a-z]+:", line)]
    assert starts == [word for word in HEADER if word in starts]
    assert {*starts} >= {"Source:", "Expected:", "Needs:"}


@every
def test_expected_is_present_where_results_are_published(shipped):
    expected = load(str(shipped.path)).recipe.expected
    text = " ".join(line.lstrip("# ") for line in header(shipped))
    own = shipped.name.startswith(("quickstart/", "stories", "llama-dpo", "qwen-dpo"))
    assert ("so there is no `expected`" in text) == (expected is None and not own)
    if expected is not None:
        assert "/" in expected.source or " by " in expected.source
        for low, high in expected.metrics.values():
            # Wider than a run's noise, narrower than the difference between two recipes.
            assert 0.01 < high - low < 0.1


@every
def test_values_outside_published_ranges_are_explained(shipped):
    loaded = load(str(shipped.path)).recipe
    for method in loaded.methods.values():
        warnings = check_published_ranges(loaded, method, parameters(shipped.name))
        if shipped.name == "zephyr-sft-qlora":
            assert [line.split()[:2] for line in warnings] == [["training.global_batch_size", "8"]]
            assert "prefcli warns that 8" in " ".join(x.lstrip("# ") for x in header(shipped))
        else:
            assert warnings == []


@every
def test_train_and_eval_data_differ(shipped):
    data = load(str(shipped.path)).recipe.data
    train = {(s.path, s.name, s.split) for s in data.train}
    assert not train & {(s.path, s.name, s.split) for s in data.eval or []}
    assert not any("test" in (s.split or "") for s in data.train)


def test_stages_use_the_output_of_the_stage_before():
    """A recipe that starts from a run starts from one that a recipe makes, or says how."""
    made = {f"{load(str(r.path)).recipe.output_dir}/model" for r in LIBRARY}
    starts = {load(str(r.path)).recipe.model.name_or_path for r in LIBRARY}
    assert {s for s in starts if s.startswith("runs/")} - made == {"runs/zephyr-sft-qlora-merged"}
    folders = [load(str(r.path)).recipe.output_dir for r in LIBRARY]
    assert len({*folders}) == len(folders)


@pytest.mark.parametrize(
    ("name", "method", "options", "rate", "schedule", "warmup", "batch", "epochs"),
    [
        ("zephyr-sft", "sft", {"packing": True}, 2e-5, "cosine", 0.1, 128, 1),
        ("zephyr-sft-qlora", "sft", {"packing": True}, 2e-4, "cosine", 0.1, 8, 1),
        ("zephyr", "dpo", {"beta": 0.1}, 5e-7, "linear", 0.1, 32, 3),
        ("zephyr-revised", "dpo", {"beta": 0.01}, 5e-7, "cosine", 0.1, 128, 1),
        ("zephyr-qlora", "dpo", {"beta": 0.01}, 5e-6, "cosine", 0.1, 16, 1),
        ("zephyr-gemma", "dpo", {"beta": 0.05}, 5e-7, "cosine", 0.1, 128, 2),
        ("zephyr-ipo", "ipo", {"beta": 0.01}, 5e-7, "cosine", 0.1, 128, 1),
        ("zephyr-kto", "kto", {"beta": 0.1}, 1e-6, "cosine", 0.1, 32, 1),
        ("zephyr-orpo-141b", "orpo", {"lambda_": 0.05}, 5e-6, "inverse_sqrt", 100, 32, 3),
        ("mistral-orpo", "orpo", {"lambda_": 0.1}, 5e-6, "inverse_sqrt", 200, 32, 5),
        ("mistral-simpo", "simpo", {"beta": 2.0, "gamma": 1.6}, 3e-7, "cosine", 0.1, 128, 1),
        ("llama3-simpo", "simpo", {"beta": 2.5, "gamma": 1.375}, 1e-6, "cosine", 0.1, 128, 1),
        ("smollm2-135m-sft", "sft", {}, 1e-3, "cosine", 0.1, 128, 2),
        ("smollm2-360m-sft", "sft", {}, 1e-3, "cosine", 0.1, 128, 2),
        ("smollm2-1.7b-sft", "sft", {}, 3e-4, "cosine", 0.1, 128, 2),
        ("smollm2-135m", "dpo", {"beta": 0.5}, 1e-6, "cosine", 0.1, 128, 2),
        ("smollm2-360m", "dpo", {"beta": 0.5}, 1e-6, "cosine", 0.1, 128, 2),
        ("smollm2-1.7b", "dpo", {"beta": 0.5}, 1e-6, "cosine", 0.1, 128, 3),
        ("smollm3-apo", "dpo", {"loss_type": "apo_zero"}, 1e-6, "cosine_with_min_lr", 0.1, 32, 1),
    ],
)  # fmt: skip
def test_recipe_is_as_published(name, method, options, rate, schedule, warmup, batch, epochs):
    loaded_recipe = recipe(name)
    assert [*loaded_recipe.methods] == [method]
    section, training = loaded_recipe.methods[method], loaded_recipe.training
    assert {key: getattr(section, key) for key in options} == options
    assert training.learning_rate == rate
    assert training.lr_scheduler_type == schedule
    assert training.warmup == warmup
    assert training.global_batch_size == batch
    assert training.num_train_epochs == epochs


def test_recipes_of_a_format_share_a_chat_template():
    """Recipes are readable alone, so they repeat it; a repaired copy must not stay alone."""
    templates = [recipe(r.name).model.chat_template for r in LIBRARY]
    assert len({t for t in templates if t and "<|user|>" in t}) == 1
    assert len({t for t in templates if t and "<|im_start|>" in t}) == 1
    assert sum(t is not None for t in templates) == 7


@every
def test_recipes_can_be_sharded_unless_they_are_quantized(shipped):
    """Check what launch.strategy auto falls back to if the model is too large for each GPU."""
    loaded = load(str(shipped.path)).recipe
    if loaded.model.quantization is None:
        for method in loaded.methods.values():
            strategy = "ddp" if method.needs_judge else "fsdp2"
            assert check_combinations(loaded, method, strategy) == []
