"""The reference is the policy that training starts from, whatever it is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from prefcli.data import tokenise
from prefcli.errors import ExitCode, GateError, RecipeError
from prefcli.measure.check_sft import check_sft
from prefcli.model import load_tokenizer
from prefcli.recipe.sections import Model
from prefcli.training import trainer as trainer_module
from prefcli.training.dry_run import dry_run
from prefcli.training.run import train
from tests.train.conftest import metric_rows, trainer_of

LORA = {"rank": 3, "alpha": 6, "dropout": 0.0}


@pytest.fixture
def sft_adapter(recipe_data, make_recipe, tmp_path) -> Path:
    """A LoRA adapter of an SFT run that has clearly moved away from its base."""
    output = tmp_path / "sft"
    data = {**recipe_data, "output_dir": str(output), "lora": {**LORA, "rank": 2, "dropout": 0.1}}
    data["training"] = {**data["training"], "learning_rate": 0.05, "max_steps": 6}
    recipe = make_recipe(data).recipe
    train(recipe, recipe.sft)
    return output / "model"


@pytest.fixture
def merged(sft_adapter, tmp_path) -> Path:
    """The same policy as a plain model."""
    folder = tmp_path / "merged"
    AutoPeftModelForCausalLM.from_pretrained(sft_adapter).merge_and_unload().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (sft_adapter / file).exists():
            shutil.copy(sft_adapter / file, folder)
    return folder


def logps(model, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([prompt + completion])).logits[0]
    scores = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return float(scores.gather(1, torch.tensor(completion)[:, None]).sum())


def build(recipe, name: str = "dpo"):
    tokenizer = load_tokenizer(recipe.model)
    return *trainer_of(recipe, name, tokenizer), tokenizer


def first_step(recipe) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first batch."""
    trainer, _, _ = build(recipe)
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def test_an_adapter_without_a_choice_is_refused(recipe_data, make_recipe, sft_adapter):
    recipe_data["model"]["name_or_path"] = str(sft_adapter)
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError) as caught:
        train(recipe, recipe.dpo)
    for choice in ("continue", "stack", "merge", "model.adapter"):
        assert choice in str(caught.value)
    assert dry_run(recipe, recipe.dpo).failure.exit_code == ExitCode.RECIPE


def test_a_choice_without_an_adapter_is_refused(recipe_data, make_recipe):
    recipe_data["model"]["adapter"] = "merge"
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="no adapter to merge"):
        train(recipe, recipe.dpo)


@pytest.mark.parametrize(
    ("adapter", "lora", "said"),
    [
        ("stack", None, "needs a lora section"),
        ("continue", LORA, "leave the lora section out"),
        ("merge", LORA, "write stack"),
    ],
)
def test_choices_and_the_lora_section(recipe_data, make_recipe, adapter, lora, said):
    recipe_data["model"]["adapter"] = adapter
    if lora:
        recipe_data["lora"] = lora
    with pytest.raises(RecipeError, match=said):
        make_recipe(recipe_data)


def test_stacked_is_the_same_as_on_the_merged_model(recipe_data, make_recipe, sft_adapter, merged):
    """Same step-0 loss, same first gradient, with the new adapter initialised alike."""
    recipe_data["lora"] = LORA
    found = []
    for name, adapter in ((sft_adapter, "stack"), (merged, None)):
        recipe_data["model"] = {"name_or_path": str(name), "adapter": adapter}
        found.append(first_step(make_recipe(recipe_data).recipe))
    (loss, grads), (expected, expected_grads) = found
    assert loss == pytest.approx(expected, rel=1e-6) == pytest.approx(0.693147, abs=1e-5)
    assert grads.keys() == expected_grads.keys()
    assert any(g.abs().max() > 1e-4 for g in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adapter", ["continue", "stack", "merge"])
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_reference_is_the_sft_policy_and_not_its_base(
    recipe_data, make_recipe, sft_adapter, merged, tiny_model, adapter, name
):
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": adapter}
    if adapter == "stack":
        recipe_data["lora"] = LORA
    loaded = make_recipe(recipe_data)
    trainer, inputs, tokenizer = build(loaded.recipe, name)
    with torch.no_grad():  # a policy that has moved, dropout and all
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    trainer.model.train()
    row = trainer.train_dataset[1]
    inputs_ = trainer._prepare_inputs(trainer.data_collator([row]))
    with torch.no_grad():
        trainer.compute_loss(trainer.model, inputs_)
    told = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    side = "chosen" if name == "dpo" or row["label"] else "rejected"
    said = told[f"logps/{side}"] - told[f"rewards/{side}"] / trainer.beta
    ids = tokenise(inputs.train.rows[1], tokenizer)
    completion = ids["chosen_ids" if name == "dpo" else "completion_ids"]
    sft = AutoModelForCausalLM.from_pretrained(merged)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert said == pytest.approx(logps(sft, ids["prompt_ids"], completion), abs=1e-3)
    assert abs(said - logps(base, ids["prompt_ids"], completion)) > 0.5


@pytest.mark.parametrize("adapter", ["continue", "stack", "merge"])
def test_a_run_on_an_adapter_leaves_one_that_loads_anywhere(
    recipe_data, make_recipe, sft_adapter, merged, tiny_model, adapter, capsys
):
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": adapter}
    recipe_data["training"] |= {"learning_rate": 0.01, "per_device_eval_batch_size": 10}
    if adapter == "stack":
        recipe_data["lora"] = {**LORA, "target_modules": ["q_proj", "up_proj"]}
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    assert "policy and reference agree on 8 rows" in capsys.readouterr().out
    model = Path(outcome.model)
    assert not (model / "ref").exists()
    assert (model / "adapter_config.json").exists() == (adapter != "merge")
    if adapter == "merge":
        after = AutoModelForCausalLM.from_pretrained(model)
    else:
        config = json.loads((model / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tiny_model)
        assert config["r"] == (5 if adapter == "stack" else 2)
        after = AutoPeftModelForCausalLM.from_pretrained(model)
    _trainer, inputs, tokenizer = build(recipe)
    rows = [tokenise(row, tokenizer) for row in inputs.eval.rows]
    margins = []
    for policy in (after, AutoModelForCausalLM.from_pretrained(merged)):
        scores = [
            [logps(policy, row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids")]
            for row in rows
        ]
        margins.append(scores)
    after_, before = margins
    n = len(rows)
    chosen = sum(s[0] for s in after_) / n
    assert chosen == pytest.approx(outcome.metrics["eval_logps/chosen"], abs=2e-3)
    reward = 0.1 * sum(a[0] - b[0] - a[1] + b[1] for a, b in zip(after_, before, strict=False)) / n
    assert reward == pytest.approx(outcome.metrics["eval_rewards/margins"], abs=1e-3)
    lineage = json.loads((Path(recipe.output_dir) / "run.json").read_text())["lineage"]
    assert [stage["stage"] for stage in lineage] == ["start", "sft"]
    assert lineage[-1]["adapter"] == adapter


def test_a_different_scaling_of_each_adapter_is_kept(recipe_data, make_recipe, sft_adapter, merged):
    """rsLoRA over LoRA: the sum has one scaling, and must still be the policy that was trained."""
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = {"rank": 4, "alpha": 3, "dropout": 0.0, "use_rslora": True}
    recipe_data["training"]["learning_rate"] = 0.05
    recipe = make_recipe(recipe_data).recipe
    outcome = train(recipe, recipe.dpo)
    again = {"name_or_path": outcome.model, "adapter": "merge"}
    data = {**recipe_data, "model": again, "output_dir": recipe.output_dir + "-again"}
    data["reference"] = {"name_or_path": str(merged)}
    del data["lora"]
    trainer, _, _ = build(make_recipe(data).recipe)
    metrics = trainer.evaluate()
    for key in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
        assert metrics[key] == pytest.approx(outcome.metrics[key], rel=1e-4), key


def test_dora_can_not_be_stacked(recipe_data, make_recipe, sft_adapter):
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = {**LORA, "use_dora": True}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="use_dora"):
        train(recipe, recipe.dpo)
    assert dry_run(recipe, recipe.dpo).problems != []


def test_check_sft_measures_the_policy_and_not_the_base(
    recipe_data, make_recipe, sft_adapter, merged
):
    found = []
    for model in (
        {"name_or_path": str(sft_adapter), "adapter": "continue"},
        {"name_or_path": str(merged)},
    ):
        found.append(check_sft(make_recipe({**recipe_data, "model": model}).recipe).perplexity)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_wrong_reference_stops_the_run(
    recipe_data, make_recipe, sft_adapter, merged, monkeypatch, lora
):
    if lora:
        recipe_data["lora"] = lora
    other = AutoModelForCausalLM.from_pretrained(merged)
    monkeypatch.setattr(trainer_module, "_reference", lambda *_: {"ref_model": other})
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(GateError, match="the reference is not the starting policy") as caught:
        train(recipe, recipe.dpo)
    assert caught.value.exit_code == ExitCode.GATE
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["status"] == "failed"
    assert not (Path(recipe.output_dir) / "model").exists()


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_another_loss_than_asked_for_stops_the_run(recipe_data, make_recipe, monkeypatch, name):
    """A peer once trained every loss as sigmoid: it starts at ln 2, whatever the name says."""
    recipe_data["dpo"] = {"loss_type": "hinge"}
    recipe = make_recipe(recipe_data).recipe
    method = recipe.methods[name]
    _, trainer_class = method.trl_classes()
    stock = trainer_class._compute_loss
    monkeypatch.setattr(trainer_class, "_compute_loss", lambda *a, **k: stock(*a, **k) * 0 + 0.6931)
    with pytest.raises(GateError, match=r"the loss is 0\.6931 .* by its formula it is"):
        train(recipe, method)


def test_a_named_reference_is_used_as_it_is(recipe_data, make_recipe, sft_adapter, merged, capsys):
    recipe_data["reference"] = {"name_or_path": str(sft_adapter)}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    out = capsys.readouterr().out
    assert f"reference: {sft_adapter}" in out
    assert "nats a token from its reference, another model" in out
    before = metric_rows(recipe.output_dir)[0]
    expected = build(
        make_recipe({**recipe_data, "reference": {"name_or_path": str(merged)}}).recipe
    )[0].evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(
        expected["eval_rewards/margins"], abs=1e-5
    )
    assert abs(before["eval_rewards/margins"]) > 1e-3


def test_reference_without_a_method_that_has_one(recipe_data, make_recipe):
    for name in ("sft", "dpo", "ipo", "kto", "simpo"):
        del recipe_data[name]
    recipe_data["reference"] = {"precompute": True}
    with pytest.raises(RecipeError, match="no effect on orpo"):
        make_recipe(recipe_data)


@pytest.mark.parametrize("kind", ["full", "lora", "continue", "stack"])
def test_resume_finds_the_reference_of_the_start(recipe_data, make_recipe, sft_adapter, kind):
    """Weights and losses of 2 + 2 steps are those of 4; the reference does not move on resume."""
    if kind in ("continue", "stack"):
        recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": kind}
    if kind in ("lora", "stack"):
        recipe_data["lora"] = {**LORA, "dropout": 0.1}
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    folder = Path(recipe.output_dir)
    whole = load_file(next((folder / "model").glob("*.safetensors")))
    losses = [row["loss"] for row in metric_rows(folder) if "loss" in row]
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoint-4")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "status": "running"}))
    train(recipe, recipe.dpo)
    again = load_file(next((folder / "model").glob("*.safetensors")))
    assert [row["loss"] for row in metric_rows(folder) if "loss" in row] == losses
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_resume_on_other_starting_weights_is_refused(
    recipe_data, make_recipe, tiny_model, tmp_path
):
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    recipe_data["model"]["name_or_path"] = str(start)
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    folder = Path(recipe.output_dir)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoint-4")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "status": "running"}))
    weights = load_file(start / "model.safetensors")
    save_file(
        {n: w + 0.02 * torch.randn_like(w) for n, w in weights.items()},
        start / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(GateError, match="not the one this run began with"):
        train(recipe, recipe.dpo)


def test_an_adapter_whose_base_is_gone(recipe_data, make_recipe, sft_adapter):
    config = json.loads((sft_adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base/model"
    (sft_adapter / "adapter_config.json").write_text(json.dumps(config))
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "continue"}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="/nowhere/base/model"):
        train(recipe, recipe.dpo)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base(recipe_data, make_recipe, tiny_model, tmp_path, quantization, capsys):
    """bitsandbytes runs on a CPU, too: slowly, and enough to prove the path."""
    pytest.importorskip("bitsandbytes")
    config = LlamaConfig.from_pretrained(tiny_model)  # its kernels want blocks of 64
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    shutil.copytree(tiny_model, tmp_path / "wider")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wider")
    recipe_data["model"] = {"name_or_path": str(tmp_path / "wider"), "quantization": quantization}
    recipe_data["lora"] = LORA
    recipe = make_recipe(recipe_data).recipe
    assert dry_run(recipe, recipe.dpo).problems == []
    outcome = train(recipe, recipe.dpo)
    assert "policy and reference agree" in capsys.readouterr().out
    assert (Path(outcome.model) / "adapter_model.safetensors").is_file()


def test_model_options_keep_their_meaning():
    with pytest.raises(ValueError, match="no weights to merge into"):
        Model(name_or_path="x", quantization="4bit", adapter="stack")
