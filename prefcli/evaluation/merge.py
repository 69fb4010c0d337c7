"""An adapter added to the weights of its base model, verified and saved as a whole model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefcli.checkpoints.atomic import place
from prefcli.checkpoints.disk import write_errors_reported
from prefcli.errors import RecipeError
from prefcli.evaluation.arguments import model_argument, named_by
from prefcli.evaluation.generate import model_of_run
from prefcli.model import load_policy, load_tokenizer
from prefcli.model.base_model import load_base_config, load_unmerged, merged, with_merged_adapter
from prefcli.model.reward_head import is_reward_model
from prefcli.model.reward_model import gives_rewards, set_padding
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.recipe.sections import Model, RewardModel

ARGUMENT = "RUN|ADAPTER"
_ROWS, _TOKENS = 4, 64
"""Rows of random tokens that are scored before and after."""
EXACT = 1e-4
"""Nats per token by which the merged model may differ in float32."""


@dataclass(frozen=True)
class Merge:
    """The result of a merge."""

    output: str
    base: str
    dtype: str
    effect: float
    """Nats per token by which the adapter changes the base."""
    error: float
    """The same by which the sum, in float32, differs from base and adapter."""
    rounding: float
    """The same by which the saved model differs from the sum."""
    stop_tokens: dict[int, str]
    is_reward_model: bool = False

    def lines(self) -> list[str]:
        """Describe the result, and how to use it."""
        compared, unit = (
            ("rewards", "") if self.is_reward_model else ("log-probabilities", " nats per token")
        )
        return [
            f"merged: {self.output}, in {self.dtype}, from the base {self.base}",
            f"verified: the adapter changes the {compared} of random tokens by "
            f"{self.effect:.2g}{unit}; the sum differs from it by {self.error:.1g}, and "
            f"rounding to {self.dtype} by {self.rounding:.1g}",
            *(
                ["warning: the adapter has no effect: it was not trained, or all of it is zero"]
                if self.effect <= EXACT
                else []
            ),
            *(self._use_of_reward_model() if self.is_reward_model else self._serving()),
        ]

    def _use_of_reward_model(self) -> list[str]:
        return ["next:", f"  prefcli score RECIPE DATA --reward-model {self.output} --output FILE"]

    def _serving(self) -> list[str]:
        ends = ", ".join(f"{text} ({i})" for i, text in self.stop_tokens.items())
        stops = "".join(f"\nPARAMETER stop {text}" for text in self.stop_tokens.values())
        name = Path(self.output).name
        return [
            f"stop tokens: {ends} (generation_config.json)",
            "next:",
            f"  prefcli chat {self.output}",
            f"  vllm serve {self.output}",
            f"  python convert_hf_to_gguf.py {self.output} --outfile {name}.gguf    # llama.cpp",
            f"  ollama create {name} -f Modelfile",
            *(f"    {line}" for line in f"FROM ./{name}.gguf{stops}".split("\n")),
        ]


def merge(name: str, output: Path, dtype: torch.dtype) -> Merge:
    """Merge an adapter into its base and save the result. Raises RecipeError.

    name: an adapter, or a run that trained one. output: a folder that does not exist; it appears
    once it is complete and verified.
    """
    options = with_merged_adapter(model_argument(model_of_run(name), ARGUMENT))
    with named_by(ARGUMENT):
        if gives_rewards(options, ARGUMENT):
            options = RewardModel.of(options)
        _refuse_quantized(options)
        tokenizer = load_tokenizer(options, where=ARGUMENT)
        policy = load_unmerged(options, torch.float32, where=ARGUMENT).eval()
    if is_reward_model(policy):
        set_padding(policy, tokenizer.pad_token_id)
    rows = _random_rows(policy.config.get_text_config().vocab_size)
    with policy.disable_adapter():
        base = _per_token(policy, rows)
    trained = _per_token(policy, rows)
    base_name = str(policy.peft_config["default"].base_model_name_or_path)
    model = merged(policy, torch.float32)
    summed = _per_token(model, rows)
    error = _apart(trained, summed)
    if not error <= EXACT:
        raise RecipeError(
            f"the merged model differs from base and adapter by {error:.2g} nats per token",
            code="MDL035",
            hint="serve the adapter on its base instead, and report this with `prefcli env`",
        )
    with named_by(ARGUMENT):
        stops = sorted(load_stop_tokens(options, tokenizer, adapter=False, where=ARGUMENT).ids)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with write_errors_reported(output):
            _save(model.to(dtype), tokenizer, stops, partial, base_name)
        del model, policy
        saved = load_policy(type(options)(name_or_path=str(partial)), dtype, 0).eval()
        rounding = _apart(summed, _per_token(saved, rows))
        with write_errors_reported(output):
            place(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Merge(
        str(output),
        base_name,
        str(dtype).removeprefix("torch."),
        effect=_apart(base, trained),
        error=error,
        rounding=rounding,
        stop_tokens={i: str(tokenizer.convert_ids_to_tokens(i)) for i in stops},
        is_reward_model=options.head == "reward",
    )


def _refuse_quantized(options: Model) -> None:
    config = load_base_config(options, where=ARGUMENT)
    if getattr(config, "quantization_config", None):
        raise RecipeError(
            "the base model is quantized, and the sum would be rounded to its few bits",
            code="MDL036",
            place=ARGUMENT,
            hint="write the name of the full-precision model into base_model_name_or_path of the "
            "adapter_config.json, or serve the adapter on its base",
        )


def _save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    folder: Path,
    base: str,
) -> None:
    model.config.dtype = model.dtype
    if not is_reward_model(model) and model.generation_config is not None:
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hub_base = "" if Path(base).is_absolute() else f"base_model: {base}\n"
    task = "text-classification" if is_reward_model(model) else "text-generation"
    (folder / "README.md").write_text(
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n{hub_base}"
        f"tags: [prefcli]\n---\n\n# {folder.name.removesuffix('.partial')}\n\n"
        "A LoRA adapter merged into its base model by `prefcli merge`.\n",
        "utf-8",
    )


def _random_rows(vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (_ROWS, _TOKENS), generator=generator)


@torch.no_grad()
def _per_token(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of all tokens but the first of each row, (rows, tokens - 1).

    Of a reward model, the reward of each row.
    """
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    if is_reward_model(model):
        return logits
    values: torch.Tensor = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    return values.squeeze(-1)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean absolute difference; NaN if a value is not finite."""
    return (one - other).abs().mean().item()
