"""The reference is the starting policy, for models and adapters of all kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from prefcli.data import tokenize
from prefcli.errors import ExitCode, GateError, RecipeError
from prefcli.evaluation.check_sft import check_sft
from prefcli.model import load_policy, load_tokenizer, lora_config, resolve_model
from prefcli.recipe.sections import Lora, Model
from prefcli.training import run as run_module
from prefcli.training import trainer as trainer_module
from prefcli.training.dry_run import dry_run
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import interrupt, metric_rows, trainer_of

LORA = {"rank": 3, "alpha": 6, "dropout": 0.0}


@pytest.fixture
def merged(sft_adapter, tmp_path) -> Path:
    """Merge the adapter into a full model."""
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
    """Return loss and gradients of the first batch."""
    trainer, _, _ = build(recipe)
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def test_train_adapter_without_model_adapter_raises(recipe_data, make_recipe, sft_adapter):
    recipe_data["model"]["name_or_path"] = str(sft_adapter)
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError) as caught:
        train(recipe, recipe.dpo)
    for choice in ("continue", "stack", "merge", "model.adapter"):
        assert choice in str(caught.value)
    assert dry_run(recipe, recipe.dpo).failure.exit_code == ExitCode.RECIPE


def test_train_model_adapter_without_an_adapter_raises(recipe_data, make_recipe):
    recipe_data["model"]["adapter"] = "merge"
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="MDL007"):
        train(recipe, recipe.dpo)


def test_resolve_model_of_a_run_folder_names_the_adapter_in_it(sft_adapter, tmp_path):
    (tmp_path / "model").symlink_to(sft_adapter)
    with pytest.raises(RecipeError, match="this is a run folder; name its model") as caught:
        resolve_model(Model(name_or_path=str(tmp_path), adapter="continue"))
    assert caught.value.problems[0].code == "MDL007"


@pytest.mark.parametrize(
    ("adapter", "lora", "expected"),
    [
        ("stack", None, "needs a lora section"),
        ("continue", LORA, "remove the lora section"),
        ("merge", LORA, "write stack"),
    ],
)
def test_recipe_model_adapter_and_lora_must_agree(
    recipe_data, make_recipe, adapter, lora, expected
):
    recipe_data["model"]["adapter"] = adapter
    if lora:
        recipe_data["lora"] = lora
    with pytest.raises(RecipeError, match=expected):
        make_recipe(recipe_data)


def test_train_stack_equals_training_on_the_merged_model(
    recipe_data, make_recipe, sft_adapter, merged
):
    """The step-0 loss and the first gradient are equal for equal initial adapters."""
    recipe_data["lora"] = LORA
    steps = []
    for name, adapter in ((sft_adapter, "stack"), (merged, None)):
        recipe_data["model"] = {"name_or_path": str(name), "adapter": adapter}
        steps.append(first_step(make_recipe(recipe_data).recipe))
    (loss, grads), (expected, expected_grads) = steps
    assert loss == pytest.approx(expected, rel=1e-6) == pytest.approx(0.693147, abs=1e-5)
    assert grads.keys() == expected_grads.keys()
    assert any(g.abs().max() > 1e-4 for g in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adapter", ["continue", "stack", "merge"])
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_reference_of_an_adapter_is_the_sft_policy(
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
    logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    side = "chosen" if name == "dpo" or row["label"] else "rejected"
    reference_logp = logged[f"logps/{side}"] - logged[f"rewards/{side}"] / trainer.beta
    ids = tokenize(inputs.train.rows[1], tokenizer)
    completion = ids["chosen_ids" if name == "dpo" else "completion_ids"]
    sft = AutoModelForCausalLM.from_pretrained(merged)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert reference_logp == pytest.approx(logps(sft, ids["prompt_ids"], completion), abs=1e-3)
    assert abs(reference_logp - logps(base, ids["prompt_ids"], completion)) > 0.5


@pytest.mark.parametrize("adapter", ["continue", "stack", "merge"])
def test_train_on_an_adapter_saves_a_model_that_loads_elsewhere(
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
    rows = [tokenize(row, tokenizer) for row in inputs.eval.rows]
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


def test_train_stack_rslora_on_lora_equals_the_trained_policy(
    recipe_data, make_recipe, sft_adapter, merged
):
    """rsLoRA on LoRA: the sum has a single scaling and equals the trained policy."""
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


def test_train_stack_dora_raises(recipe_data, make_recipe, sft_adapter):
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = {**LORA, "use_dora": True}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError, match="does not support an adapter with use_dora"):
        train(recipe, recipe.dpo)
    assert dry_run(recipe, recipe.dpo).problems != []


def test_check_sft_adapter_scores_the_policy(recipe_data, make_recipe, sft_adapter, merged):
    perplexities = []
    for model in (
        {"name_or_path": str(sft_adapter), "adapter": "continue"},
        {"name_or_path": str(merged)},
    ):
        perplexities.append(
            check_sft(make_recipe({**recipe_data, "model": model}).recipe).perplexity
        )
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_train_wrong_reference_stops_at_step_0(
    recipe_data, make_recipe, sft_adapter, merged, monkeypatch, lora
):
    if lora:
        recipe_data["lora"] = lora
    other = AutoModelForCausalLM.from_pretrained(merged)
    monkeypatch.setattr(trainer_module, "load_reference", lambda *_: {"ref_model": other})
    recipe = make_recipe(recipe_data).recipe
    with stops_with("TRN026") as caught:
        train(recipe, recipe.dpo)
    assert caught.value.exit_code == ExitCode.GATE
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["status"] == "failed"
    assert not (Path(recipe.output_dir) / "model").exists()


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_train_wrong_loss_stops_at_step_0(recipe_data, make_recipe, monkeypatch, name):
    """Another tool trained every loss as sigmoid, whose loss starts at ln 2."""
    recipe_data["dpo"] = {"loss_type": "hinge"}
    recipe = make_recipe(recipe_data).recipe
    method = recipe.methods[name]
    _, trainer_class = method.trl_classes()
    stock = trainer_class._compute_loss
    monkeypatch.setattr(trainer_class, "_compute_loss", lambda *a, **k: stock(*a, **k) * 0 + 0.6931)
    with stops_with("TRN027"):
        train(recipe, method)


def test_train_named_reference_is_used(recipe_data, make_recipe, sft_adapter, merged, capsys):
    recipe_data["reference"] = {"name_or_path": str(sft_adapter)}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    out = capsys.readouterr().out
    assert f"reference: {sft_adapter}" in out
    assert f"nats per token from its reference, {sft_adapter}" in out
    before = metric_rows(recipe.output_dir)[0]
    expected = build(
        make_recipe({**recipe_data, "reference": {"name_or_path": str(merged)}}).recipe
    )[0].evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(
        expected["eval_rewards/margins"], abs=1e-5
    )
    assert abs(before["eval_rewards/margins"]) > 1e-3


def test_recipe_reference_without_such_a_method_raises(recipe_data, make_recipe):
    for name in ("sft", "dpo", "ipo", "kto", "simpo", "rloo"):
        del recipe_data[name]
    recipe_data["reference"] = {"precompute": True}
    with pytest.raises(RecipeError, match="no effect on orpo"):
        make_recipe(recipe_data)


@pytest.mark.parametrize(
    "kind",
    ["full", *(pytest.param(k, marks=pytest.mark.slow) for k in ("lora", "continue")), "stack"],
)
def test_resume_uses_the_reference_of_the_start(recipe_data, make_recipe, sft_adapter, kind):
    """Weights and losses of 2 + 2 steps equal those of 4; the reference stays the same."""
    if kind in ("continue", "stack"):
        recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": kind}
    if kind in ("lora", "stack"):
        recipe_data["lora"] = {**LORA, "dropout": 0.1}
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    folder = Path(recipe.output_dir)
    uninterrupted = load_file(next((folder / "model").glob("*.safetensors")))
    losses = [row["loss"] for row in metric_rows(folder) if "loss" in row]
    interrupt(folder, "checkpoint-4")
    train(recipe, recipe.dpo)
    again = load_file(next((folder / "model").glob("*.safetensors")))
    assert [row["loss"] for row in metric_rows(folder) if "loss" in row] == losses
    for name, value in uninterrupted.items():
        assert torch.equal(value, again[name]), name


def test_resume_with_changed_starting_weights_raises(
    recipe_data, make_recipe, tiny_model, tmp_path, monkeypatch
):
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    recipe_data["model"]["name_or_path"] = str(start)
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    folder = Path(recipe.output_dir)
    interrupt(folder, "checkpoint-4")
    weights = load_file(start / "model.safetensors")
    save_file(
        {n: w + 0.02 * torch.randn_like(w) for n, w in weights.items()},
        start / "model.safetensors",
        metadata={"format": "pt"},
    )
    start_weights = json.loads((folder / "run.json").read_text())["start_weights"]
    with stops_with("TRN024"):
        train(recipe, recipe.dpo)
    monkeypatch.setattr("prefcli.training.policy.weights_digest", lambda model: start_weights)
    with stops_with("TRN028"):
        train(recipe, recipe.dpo)


def test_train_adapter_with_missing_base_raises(recipe_data, make_recipe, sft_adapter):
    config = json.loads((sft_adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base/model"
    (sft_adapter / "adapter_config.json").write_text(json.dumps(config))
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "continue"}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(
        RecipeError, match="has the base model /nowhere/base/model, which does not exist"
    ):
        train(recipe, recipe.dpo)


@pytest.mark.parametrize("quantization", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_load_policy_quantized_base_trains_float32_adapters(
    recipe_data, make_recipe, tiny_model, tmp_path, quantization, capsys, monkeypatch
):
    """A run needs a GPU; bitsandbytes on a CPU suffices to test the loading."""
    pytest.importorskip("bitsandbytes")
    config = LlamaConfig.from_pretrained(tiny_model)  # the kernels need blocks of 64
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    shutil.copytree(tiny_model, tmp_path / "wider")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wider")
    recipe_data["model"] = {"name_or_path": str(tmp_path / "wider"), "quantization": quantization}
    recipe_data["lora"] = LORA
    recipe = make_recipe(recipe_data).recipe
    assert dry_run(recipe, recipe.dpo).problems == []
    assert f"model.quantization: {quantization}" in capsys.readouterr().out
    with stops_with("ENV053"):
        train(recipe, recipe.dpo)
    monkeypatch.setattr("prefcli.preflight.checks.check_packages", lambda *args, **kwargs: None)
    outcome = train(recipe, recipe.dpo)
    assert "policy and reference agree" in capsys.readouterr().out
    assert (Path(outcome.model) / "adapter_model.safetensors").is_file()
    # trl rounds them to bfloat16, which would lose usual updates.
    trainer, _, _ = build(recipe)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    recipe_data["model"] = {
        "name_or_path": outcome.model,
        "quantization": quantization,
        "adapter": "continue",
    }
    del recipe_data["lora"]
    recipe_data["output_dir"] += "-on"
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert "policy and reference agree" in capsys.readouterr().out


def test_recipe_stack_on_a_quantized_base_raises():
    with pytest.raises(ValueError, match="merges into the base, which quantization does not allow"):
        Model(name_or_path="x", quantization="4bit", adapter="stack")


def adapt(model: Path, folder: Path, **options) -> Path:
    """Save an adapter of noise with options that only peft has."""
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=2, task_type="CAUSAL_LM", **options),
    )
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    peft.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, ["continue", "stack"]),
        pytest.param(
            {"target_modules": ["q_proj", "lm_head"]},
            ["continue", "stack"],
            marks=pytest.mark.slow,
            id="head",
        ),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, ["continue", "stack"]),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, ["stack"]),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, ["stack"]),
        ({"target_modules": ["q_proj"], "use_dora": True}, ["stack"]),
        ({"target_modules": "model.*(q|v)_proj"}, []),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_train_adapter_features_are_supported_or_refused(
    recipe_data, make_recipe, tiny_model, tmp_path, options, refused
):
    """An unsupported feature stops run and dry-run; the others are trained correctly."""
    folder = adapt(tiny_model, tmp_path / "odd", **options)
    policy = AutoPeftModelForCausalLM.from_pretrained(folder)
    for adapter in ("continue", "stack", "merge"):
        data = {**recipe_data, "output_dir": str(tmp_path / adapter)}
        data["model"] = {"name_or_path": str(folder), "adapter": adapter}
        data["training"] = {**data["training"], "learning_rate": 1e-30}
        if adapter == "stack":
            data["lora"] = LORA
        recipe = make_recipe(data).recipe
        if adapter in refused:
            with pytest.raises(RecipeError, match="MDL008"):
                train(recipe, recipe.dpo)
            assert dry_run(recipe, recipe.dpo).problems
            continue
        model = train(recipe, recipe.dpo).model
        load = AutoModelForCausalLM if adapter == "merge" else AutoPeftModelForCausalLM
        after = load.from_pretrained(model)
        assert logps(after, [5, 6], [7, 8, 9]) == pytest.approx(
            logps(policy, [5, 6], [7, 8, 9]), abs=1e-4
        )


def test_load_policy_checkpoint_of_a_stacked_run_includes_the_first_adapter(
    recipe_data, make_recipe, sft_adapter, merged
):
    """Loading it must include the adapter of the earlier stage."""
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = LORA
    recipe_data["training"]["learning_rate"] = 1e-30
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    checkpoint = Path(recipe.output_dir) / "checkpoint-2"
    loaded = load_policy(
        Model(name_or_path=str(checkpoint), adapter="merge"), torch.float32, seed=0
    )
    expected = logps(AutoModelForCausalLM.from_pretrained(merged), [5, 6], [7, 8, 9])
    assert logps(loaded, [5, 6], [7, 8, 9]) == pytest.approx(expected, abs=1e-4)
    for adapter in ("continue", "stack"):
        with pytest.raises(RecipeError, match="MDL010"):
            resolve_model(Model(name_or_path=str(checkpoint), adapter=adapter))


def test_train_after_a_failed_gate_copies_the_adapter_again(
    recipe_data, make_recipe, sft_adapter, tiny_model, tmp_path
):
    """The adapter copied by the first run is not part of the second run's sum."""
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = LORA
    recipe_data["training"]["learning_rate"] = 1e-30
    recipe_data["check_sft"] = {"max_perplexity": 1.5}
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(GateError):
        train(recipe, recipe.dpo)
    recipe_data["check_sft"] = {"on_fail": "skip"}
    other = adapt(tiny_model, tmp_path / "other", target_modules=["q_proj"])
    recipe_data["model"]["name_or_path"] = str(other)
    recipe = make_recipe(recipe_data).recipe
    after = AutoPeftModelForCausalLM.from_pretrained(train(recipe, recipe.dpo).model)
    expected = logps(AutoPeftModelForCausalLM.from_pretrained(other), [5, 6], [7, 8, 9])
    assert logps(after, [5, 6], [7, 8, 9]) == pytest.approx(expected, abs=1e-4)


def test_train_stack_survives_removal_of_the_first_adapter(
    recipe_data, make_recipe, sft_adapter, merged, monkeypatch
):
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "stack"}
    recipe_data["lora"] = LORA
    recipe_data["training"]["learning_rate"] = 1e-30
    recipe = make_recipe(recipe_data).recipe
    stock = run_module.save_model

    def save(*args, **kwargs):
        shutil.rmtree(sft_adapter)
        stock(*args, **kwargs)

    monkeypatch.setattr(run_module, "save_model", save)
    after = AutoPeftModelForCausalLM.from_pretrained(train(recipe, recipe.dpo).model)
    expected = logps(AutoModelForCausalLM.from_pretrained(merged), [5, 6], [7, 8, 9])
    assert logps(after, [5, 6], [7, 8, 9]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("gone", "reference.name_or_path: no such folder"),
        ("vocabulary", "the tokenizer has 300 tokens, the reference only 200"),
        ("context", "exceeds the reference's context of 32 tokens"),
        ("tokenizer", "MDL022"),
        ("revision", "reference.revision: a local folder has no revisions"),
    ],
)
def test_train_named_reference_that_does_not_fit_raises(
    recipe_data, make_recipe, tiny_model, tmp_path, change, expected
):
    other = tmp_path / "other"
    if change != "gone":
        shutil.copytree(tiny_model, other)
    config = LlamaConfig.from_pretrained(tiny_model)
    if change == "vocabulary":
        config.vocab_size = 200
    if change == "context":
        config.max_position_embeddings = 32
    if change in ("vocabulary", "context"):
        LlamaForCausalLM(config).save_pretrained(other)
    if change == "tokenizer":
        tokenizer = load_tokenizer(Model(name_or_path=str(tiny_model)))
        tokenizer.add_tokens(["new"])
        tokenizer.save_pretrained(other)
        config.vocab_size += 1
        LlamaForCausalLM(config).save_pretrained(other)
    recipe_data["reference"] = {"name_or_path": str(other)}
    if change == "revision":
        recipe_data["reference"]["revision"] = "main"
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(RecipeError) as caught:
        train(recipe, recipe.dpo)
    assert expected in str(caught.value)
    assert expected in "".join(map(str, dry_run(recipe, recipe.dpo).problems))


def test_check_sft_adapter_without_model_adapter_is_merged(
    recipe_data, make_recipe, sft_adapter, merged
):
    bare = make_recipe({**recipe_data, "model": {"name_or_path": str(sft_adapter)}}).recipe
    plain = make_recipe({**recipe_data, "model": {"name_or_path": str(merged)}}).recipe
    assert check_sft(bare).perplexity == pytest.approx(check_sft(plain).perplexity, rel=1e-5)


def test_lora_config_has_the_revision_of_the_base(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert lora_config(Lora(), model, "v1").revision == "v1"
