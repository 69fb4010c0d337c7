"""trl's trainer for a recipe: the same one in a run and in every test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl.trainer.utils import disable_dropout_in_model

from prefcli.data import Split
from prefcli.errors import DataError
from prefcli.methods import Method
from prefcli.model import Machine, load_model, lora_config
from prefcli.recipe.schema import Lora, Recipe
from prefcli.training.arguments import build, prove_arrival, trl_options
from prefcli.training.inputs import Inputs


def make_trainer(
    recipe: Recipe,
    method: Method,
    machine: Machine,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    *,
    eval_on_start: bool = True,
    callbacks: list[TrainerCallback] | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer, and the effective configuration, proven to hold the recipe's values.

    The reference of a full fine-tuning run is loaded a second time, from the place of the policy;
    under LoRA it is the policy with its adapter off.
    """
    options = trl_options(recipe, method, machine)
    config_class, trainer_class = method.trl_classes()
    config = build(
        options,
        config_class,
        eval_on_start=eval_on_start and inputs.eval is not None,
    )
    more: dict[str, Any] = {}
    if recipe.lora is not None:
        if method.name != "sft":
            disable_dropout_in_model(policy)
        more["peft_config"] = lora_config(recipe.lora)
    elif method.needs_reference:
        reference = load_model(recipe.model, machine.dtype(recipe.model, None), recipe.seed)
        more["ref_model"] = reference.to(machine.kind)
    with _dividing_prompts(inputs):
        trainer = trainer_class(
            model=policy,
            args=config,
            train_dataset=inputs.train.for_trl(),
            eval_dataset=inputs.eval.for_trl() if inputs.eval is not None else None,
            processing_class=tokenizer,
            callbacks=callbacks,
            **more,
        )
    # Watch does the printing.
    trainer.remove_callback(PrinterCallback)
    # trl writes a card about "None" beside the checkpoints.
    trainer.create_model_card = lambda *args, **kwargs: None
    effective = prove_arrival(options, trainer.args)
    if recipe.lora is not None:
        effective["lora"] = _prove_lora(recipe.lora, trainer.model)
    if not getattr(trainer.args, "packing", False):
        _prove_rows(inputs.train, trainer.train_dataset)
    return trainer, effective


@contextmanager
def _dividing_prompts(inputs: Inputs) -> Iterator[None]:
    """trl's ORPO gives up on a row whose prompt is not a prefix of prompt and answer in tokens."""
    try:
        yield
    except ValueError as error:
        if "input ids" not in str(error) and "prompt_input_ids" not in str(error):
            raise
        raise DataError(
            "in some row the tokens of the prompt merge with those of the answer",
            place=inputs.train.rows[0]["_file"],
            hint="let prompts end where a word ends, or the chat template render the prompt alone "
            "as it does beside the answer",
        ) from None


def _prove_lora(options: Lora, model: Any) -> dict[str, Any]:
    """The adapter in the model is the recipe's, down to the dropout layers."""
    config = model.peft_config["default"]
    ours = lora_config(options)
    effective = {}
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        effective[name] = getattr(config, name)
        assert effective[name] == getattr(ours, name), f"lora: {name} did not arrive"
    dropouts = {
        getattr(layer.lora_dropout["default"], "p", 0.0)
        for layer in model.modules()
        if hasattr(layer, "lora_dropout")
    }
    assert dropouts == {options.dropout}, f"lora: dropout is {dropouts}, not {options.dropout}"
    effective["target_modules"] = sorted(config.target_modules)
    return effective


def _prove_rows(split: Split, prepared: Any) -> None:
    """trl drops rows without a word; those it would drop were dropped, and counted, before."""
    assert len(prepared) == len(split.rows), (
        f"trl kept {len(prepared)} of the {len(split.rows)} rows it was given"
    )
