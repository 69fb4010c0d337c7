"""Every recipe key reaches trl's config under an existing name, and only there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefcli.health import Health
from prefcli.methods import METHODS
from prefcli.model import Device, detect_device
from prefcli.model.lora import disable_base_dropout, lora_config
from prefcli.recipe.sections import DataChecks, FunctionJudge, Judge, Pairs
from prefcli.training.run import train
from prefcli.trl_integration.trl_args import assert_args_applied, build, trl_options
from tests.support.scored_rows import tiny
from tests.support.tiny_runs import ANYTHING, labelled, metric_rows, pairs, trainer_of, write_jsonl

# Recipe keys that become a trainer argument: path -> (changed value, trl's name).
CHANGES = {
    "seed": (7, "seed"),
    "data.max_length": (32, "max_length"),
    "data.num_proc": (2, "dataset_num_proc"),
    "training.num_train_epochs": (2.5, "num_train_epochs"),
    "training.max_steps": (5, "max_steps"),
    "training.global_batch_size": (16, "gradient_accumulation_steps"),
    "training.per_device_train_batch_size": (2, "per_device_train_batch_size"),
    "training.per_device_eval_batch_size": (3, "per_device_eval_batch_size"),
    "training.learning_rate": (2e-5, "learning_rate"),
    "training.lr_scheduler_type": ("linear", "lr_scheduler_type"),
    "training.warmup_ratio": (0.3, "warmup_steps"),
    "training.warmup_steps": (4, "warmup_steps"),
    "training.optim": ("sgd", "optim"),
    "training.weight_decay": (0.2, "weight_decay"),
    "training.adam_beta1": (0.8, "adam_beta1"),
    "training.adam_beta2": (0.95, "adam_beta2"),
    "training.adam_epsilon": (1e-7, "adam_epsilon"),
    "training.max_grad_norm": (0.5, "max_grad_norm"),
    "training.gradient_checkpointing": ("auto", "gradient_checkpointing"),  # on, unless chosen
    "training.logging_steps": (7, "logging_steps"),
    "training.eval_steps": (9, "eval_steps"),
    "training.save_steps": (11, "save_steps"),
    "training.save_total_limit": (5, "save_total_limit"),
    "output_dir": ("elsewhere", "output_dir"),
    "reference.precompute": (True, "precompute_ref_log_probs"),
    "sft.completion_only_loss": (False, "completion_only_loss"),
    "sft.assistant_only_loss": (True, "assistant_only_loss"),
    "sft.packing": (True, "packing"),
    "sft.loss_type": ("dft", "loss_type"),
    "dpo.beta": (0.3, "beta"),
    "dpo.loss_type": ("hinge", "loss_type"),
    "dpo.ld_alpha": (0.3, "ld_alpha"),
    "dpo.f_divergence_type": ("js_divergence", "f_divergence_type"),
    "ipo.beta": (0.3, "beta"),
    "kto.beta": (0.3, "beta"),
    "kto.desirable_weight": (1.3, "desirable_weight"),
    "kto.undesirable_weight": (1.3, "undesirable_weight"),
    "kto.loss_type": ("apo_zero_unpaired", "loss_type"),
    "orpo.lambda": (0.3, "beta"),
    "simpo.beta": (0.3, "beta"),
    "simpo.gamma": (0.3, "simpo_gamma"),
    "simpo.cpo_alpha": (0.3, "cpo_alpha"),
    "reward.center_rewards_coefficient": (0.3, "center_rewards_coefficient"),
    "rloo.beta": (0.3, "beta"),
    "rloo.num_generations": (4, "num_generations"),
    "rloo.max_completion_length": (9, "max_completion_length"),
    "rloo.temperature": (0.7, "temperature"),
    "rloo.top_p": (0.9, "top_p"),
    "rloo.normalize_advantages": (True, "normalize_advantages"),
    "rloo.reward_clip_range": ([-1.0, 1.0], "reward_clip_range"),
    "rloo.mask_truncated_completions": (True, "mask_truncated_completions"),
    "cpo.loss_type": ("hinge", "loss_type"),
    "cpo.beta": (0.3, "beta"),
    "cpo.cpo_alpha": (0.3, "cpo_alpha"),
    "cpo.label_smoothing": (0.3, "label_smoothing"),
}
# Keys that prefcli itself reads, or that change the model rather than trl's config.
ELSEWHERE = {
    "model.name_or_path",
    "model.revision",
    "model.init",
    "model.dtype",
    "model.attn_implementation",
    "model.tokenizer",  # test_lora_targets.py
    "model.tokenizer_revision",
    "model.chat_template",
    "model.eos_token",  # test_tokens_seen.py
    "model.adapter",
    "model.quantization",
    "model.trust_remote_code",  # test_remote_code.py
    "reference.name_or_path",
    "push_to_hub",  # test_push.py
    "reference.revision",
    "sft_mix",  # test_sft_mix.py
    "cpo.alpha",  # test_keys_of_alphapo_reach_trl
    "cpo.gamma",
    "rloo.sampling_batch_size",  # tests/train/formulas/test_rloo.py
    "reward.margin_column",  # test_reward_with_margins_matches_the_formula
    *(f"judge.{key}" for key in Judge.model_fields if key != "function"),  # test_pairs.py
    *(f"judge.function.{key}" for key in FunctionJudge.model_fields),
    *(f"pairs.{key}" for key in Pairs.model_fields),
    "launch.strategy",  # test_automatic.py
    "launch.processes",  # test_launch.py
    "launch.nodes",
    "expected",  # test_anchor.py
    "data.train",
    "data.eval",
    "training.min_lr_ratio",  # with cosine_with_min_lr, below
    "training.early_stopping",  # tests/train/test_early_stopping.py
    *(f"data.checks.{name}.{key}" for name in DataChecks.model_fields for key in ("warn", "error")),
    *(f"health.{rule.name}.{key}" for rule in Health().rules for key in type(rule).model_fields),
    "check_sft.max_perplexity",
    "check_sft.on_fail",
    "check_sft.max_rows",
    "samples.prompts",  # test_samples.py
    "samples.max_new_tokens",
    "samples.temperature",
    "logging.report_to",  # test_trackers.py
    "logging.run_name",
    "performance.shared_prefix",  # test_packed_forward_methods.py
    "performance.compile",  # test_compiled_layers.py
    "performance.tokens_per_batch",  # test_token_batches.py
    "dpo.loss_weights",  # together with a list of losses, below
    "dpo.label_smoothing",
    "dpo.f_alpha_divergence_coef",  # with alpha_divergence, below
    "dpo.discopop_tau",  # with discopop, below
    "lora.rank",
    "lora.alpha",
    "lora.dropout",
    "lora.target_modules",
    "lora.target_parameters",  # test_parts.py
    "lora.modules_to_save",  # test_lora_targets.py
    "lora.use_rslora",
    "lora.use_dora",
}


def effective(recipe, name):
    method, _ = recipe.methods[name].for_labels(1, 1)
    options = trl_options(recipe, method, detect_device())
    config_class, _ = method.trl_classes()
    return assert_args_applied(options, build(options, config_class))


@pytest.mark.parametrize("name", METHODS)
def test_trl_config_has_every_option_name(recipe_data, make_recipe, name):
    recipe = make_recipe(recipe_data).recipe
    config_class, _ = recipe.methods[name].trl_classes()
    fields = {field.name for field in dataclasses.fields(config_class)}
    method, _ = recipe.methods[name].for_labels(1, 1)
    assert trl_options(recipe, method, detect_device()).keys() <= fields


@pytest.mark.parametrize("path", CHANGES)
def test_changed_key_changes_only_its_argument(recipe_data, make_recipe, path):
    value, argument = CHANGES[path]
    recipe_data["kto"] = {"desirable_weight": 1.0, "undesirable_weight": 1.0}  # auto follows
    section = path.partition(".")[0]
    name = section if section in METHODS else "dpo"
    before = effective(make_recipe(recipe_data).recipe, name)
    after = effective(make_recipe(recipe_data, f"{path}={json.dumps(value)}").recipe, name)
    changed = {k for k in {*before, *after} if before.get(k) != after.get(k)}
    consequences = {
        "seed": {"data_seed"},
        # The same global batch in smaller micro-batches.
        "training.per_device_train_batch_size": {
            "gradient_accumulation_steps",
            "per_device_eval_batch_size",
        },
        "training.eval_steps": {"eval_strategy"},
    }
    assert changed - consequences.get(path, set()) == {argument}


def test_every_schema_key_is_covered_here(recipe_data, make_recipe):
    recipe_data["lora"] = {}
    recipe = make_recipe(recipe_data).recipe

    def leaves(model, prefix=""):
        for name, field in type(model).model_fields.items():
            path = f"{prefix}{field.alias or name}"
            value = getattr(model, name)
            if hasattr(value, "model_fields"):
                yield from leaves(value, f"{path}.")
            else:
                yield path

    assert set(leaves(recipe)) == CHANGES.keys() | ELSEWHERE


def test_combined_losses_reach_trl(recipe_data, make_recipe):
    recipe_data["dpo"] = {
        "loss_type": ["robust", "sft"],
        "loss_weights": [1.0, 0.2],
        "label_smoothing": 0.1,
    }
    arrived = effective(make_recipe(recipe_data).recipe, "dpo")
    assert arrived["loss_type"] == ["robust", "sft"]
    assert arrived["loss_weights"] == [1.0, 0.2]
    assert arrived["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("section", "argument", "value"),
    [
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
            "f_alpha_divergence_coef",
            0.3,
        ),
        ({"loss_type": "discopop", "discopop_tau": 0.3}, "discopop_tau", 0.3),
        ({"loss_type": ["sigmoid", "ipo"]}, "loss_type", ["sigmoid", "ipo"]),
        ({"ld_alpha": 0.0}, "ld_alpha", 0.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dependent_keys_of_dpo_reach_trl(recipe_data, make_recipe, section, argument, value):
    recipe_data["dpo"] = section
    assert effective(make_recipe(recipe_data).recipe, "dpo")[argument] == value


def test_keys_of_alphapo_reach_trl(recipe_data, make_recipe):
    recipe_data["cpo"] = {"loss_type": "alphapo", "alpha": 0.5, "gamma": 0.2}
    arrived = effective(make_recipe(recipe_data).recipe, "cpo")
    assert (arrived["loss_type"], arrived["alpha"], arrived["simpo_gamma"]) == ("simpo", 0.5, 0.2)


def test_min_lr_ratio_sets_the_end_of_the_cosine(recipe_data, make_recipe):
    """Factor (1 + cos(pi k / 4)) / 2 * 0.8 + 0.2 of the rate 1e-3 after k of 4 steps."""
    recipe_data["training"] |= {
        "max_steps": 4,
        "warmup_steps": 0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "min_lr_ratio": 0.2,
    }
    recipe = make_recipe(recipe_data).recipe
    assert effective(recipe, "dpo")["lr_scheduler_kwargs"] == {"min_lr_rate": 0.2}
    train(recipe, recipe.dpo)
    rates = [row["learning_rate"] for row in metric_rows(recipe.output_dir) if "loss" in row]
    assert rates == pytest.approx([1e-3, 8.828427e-4, 6e-4, 3.171573e-4], rel=1e-6)


def test_kto_auto_weights_reach_trl_resolved(recipe_data, make_recipe, tmp_path, capsys):
    """Compare trl's weights with those of for_labels for the remaining rows."""
    rows = [row for row in labelled(24) if row["label"]][:8] + [
        row for row in labelled(12) if not row["label"]
    ]
    rows.append({"prompt": "say", "completion": "", "label": False})  # dropped, so not counted
    data = write_jsonl(tmp_path / "labelled.jsonl", rows)
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": str(data)}, "max_length": 64}
    recipe_data["training"] |= {"global_batch_size": 4, "max_steps": 1}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.kto)
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["effective"]["desirable_weight"] == 1.0
    assert run["effective"]["undesirable_weight"] == pytest.approx(8 / 4 * 3 / 4)
    assert (
        "8 desirable rows with weight 1, 4 undesirable rows with weight 1.5"
        in capsys.readouterr().out
    )


def test_every_lora_key_reaches_peft(recipe_data, make_recipe):
    recipe_data["lora"] = {
        "rank": 3,
        "alpha": 5,
        "dropout": 0.25,
        "target_modules": ["q_proj"],
        "use_rslora": True,
        "use_dora": True,
    }
    recipe = make_recipe(recipe_data).recipe
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    config = lora_config(recipe.lora, model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert config.target_modules == {"q_proj"}
    assert config.use_rslora
    assert config.use_dora


@pytest.mark.parametrize("name", METHODS)
def test_lora_dropout_is_not_changed_by_trl(recipe_data, make_recipe, name):
    """trl's disable_dropout would set it to zero, as rloo needs it."""
    recipe_data["lora"] = {"rank": 2, "dropout": 0.25}
    trainer, _ = trainer_of(make_recipe(recipe_data).recipe, name)
    layers = [layer for layer in trainer.model.modules() if hasattr(layer, "lora_dropout")]
    rates = {getattr(layer.lora_dropout["default"], "p", 0.0) for layer in layers}
    assert rates == {0.25 if METHODS[name].keeps_adapter_dropout else 0.0}


@pytest.mark.parametrize("name", METHODS)
def test_trainer_keeps_every_row_of_the_split(recipe_data, make_recipe, tmp_path, name):
    """trl drops rows silently; prefcli drops and counts those before trl sees them."""
    too_long = {"prompt": "say " * 100, "chosen": " yes", "rejected": " no"}
    path = write_jsonl(tmp_path / "rows.jsonl", [*pairs(24), too_long])
    recipe_data["data"]["train"] = {"path": str(path)}
    trainer, inputs = trainer_of(make_recipe(recipe_data).recipe, name)
    assert sum(tally.count for tally in inputs.train.dropped.values()) > 0
    assert len(trainer.train_dataset) == len(inputs.train.rows) > 0


def test_assert_args_applied_rejects_a_missing_value(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data).recipe
    options = trl_options(recipe, recipe.dpo, detect_device())
    config_class, _ = recipe.dpo.trl_classes()
    config = build(options, config_class)
    config.beta = 0.5
    with pytest.raises(AssertionError, match=r"beta.*0\.1.*0\.5"):
        assert_args_applied(options, config)


def test_run_json_contains_the_effective_configuration(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data, "dpo.beta=0.07").recipe
    train(recipe, recipe.dpo)
    run = json.loads((Path(recipe.output_dir) / "run.json").read_text())
    assert run["effective"]["beta"] == 0.07
    assert run["effective"]["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("kind", "optim", "arrives"),
    [
        ("cuda", "auto", "adamw_torch_fused"),
        ("cpu", "auto", "adamw_torch"),
        ("cuda", "adamw_torch", "adamw_torch"),
        ("cpu", "sgd", "sgd"),
    ],
)
def test_optim_auto_on_a_gpu_is_fused_adamw(recipe_data, make_recipe, kind, optim, arrives):
    recipe = make_recipe(recipe_data, f"training.optim={optim}").recipe
    device = Device(kind, "a device", bfloat16=False)
    assert trl_options(recipe, recipe.dpo, device)["optim"] == arrives


def test_optim_default_is_auto(recipe_data, make_recipe):
    assert make_recipe(recipe_data).recipe.training.optim == "auto"


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_base_dropout_without_a_module_is_disabled(family):
    """OPT calls dropout as a function, and most models do so in their attention."""
    rates = {"opt": {"dropout": 0.3, "layerdrop": 0.5}, "llama": {}}[family]
    model = tiny(family, attention_dropout=0.3, **rates)
    ids = torch.arange(3, 19)[None]

    def logits():
        return model(input_ids=ids).logits

    assert not torch.equal(logits(), logits())
    disable_base_dropout(model)
    assert torch.equal(logits(), logits())
    assert model.training
